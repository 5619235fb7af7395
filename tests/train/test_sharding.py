"""Ranks that hold shards train as one process does, write checkpoints that any number of ranks takes up, and lose
nothing but the checkpoint that was being written."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.fsdp._fully_shard import _fsdp_param_group

from harness.store import states
from harness.store.atomic import read_json, read_json_lines
from harness.store.attempts import begin
from harness.store.checkpoints import MARKER, verify
from harness.store.markers import UnknownSchema, read_marked
from harness.study.errors import UserError
from harness.train import shard_files, shard_saves
from harness.train.forward import Forward
from harness.train.parallel import MOST_PARAMETERS_OF_DDP, choose, described
from harness.train.ranks import Ranks
from harness.train.shard_files import ShardFiles
from tests.train import build
from tests.train.build import BATCH, LENGTH, StudyFolder, piece
from tests.train.groups import (
    BF16,
    END,
    RATE,
    STEPS,
    Group,
    Prepare,
    assert_close,
    assert_near,
    at_update,
    path,
    rows,
    stop_at,
    tensors,
    together,
    trained,
)

FSDP = {"strategy": "fsdp"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, str]:
    torch.set_num_threads(1)
    return trained(tmp_path_factory.mktemp("alone"), 1, path())


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyFolder, str]:
    """Four ranks, every second batch a checkpoint, all kept."""
    torch.set_num_threads(1)
    every = {"checkpoint_every": 4 * BATCH, "keep": "all"}
    return trained(tmp_path_factory.mktemp("four"), 4, path(), **FSDP, **every)


def events(study: StudyFolder, name: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_json_lines(study.state(name).events) if event["kind"] == kind]


def assert_equal_ends(a: tuple[StudyFolder, str], b: tuple[StudyFolder, str]) -> None:
    """Weights and optimizer state at the end. (Updates that two worlds have made differ by rounding in the metrics.)"""
    ours, theirs = tensors(*a), tensors(*b)
    assert ours.keys() == theirs.keys()
    for key in theirs:
        assert_near(ours[key], theirs[key])


def test_four_ranks_with_shards_train_as_one_process_does(
    alone: tuple[StudyFolder, str], four: tuple[StudyFolder, str]
) -> None:
    """All metrics at every step; weights, optimizer state and data order at the end."""
    assert_close(four, alone)
    cursors = [(study.state(name).checkpoint(END) / "cursor.json").read_bytes() for study, name in (alone, four)]
    assert cursors[0] == cursors[1]
    env = read_json(four[0].state(four[1]).attempt(0) / "env.json")
    assert (env["numerics"]["strategy"], env["numerics"]["world"]) == ("fsdp", 4)
    assert env["precision"] == "parameters fp32 sharded, gathered as fp32, gradients reduced in fp32"


def test_the_last_checkpoint_is_the_one_that_a_single_process_writes(
    alone: tuple[StudyFolder, str], four: tuple[StudyFolder, str]
) -> None:
    ours, theirs = (verify(study.state(name).checkpoint(END)) for study, name in (four, alone))
    assert ours.files.keys() == theirs.files.keys() and not ours.sharded
    assert read_json(ours.path / MARKER)["schema"] == read_json(theirs.path / MARKER)["schema"] == 1
    for name in ours.files:
        if name.endswith(".json"):
            assert (ours.path / name).read_bytes() == (theirs.path / name).read_bytes() or name == "cursor.json"


def test_a_sharded_checkpoint_is_safetensors_and_json_alone_and_opens_with_torchs_own_reader(
    four: tuple[StudyFolder, str],
) -> None:
    study, name = four
    marker = verify(study.state(name).checkpoint(4 * BATCH))
    assert marker.sharded and {Path(file).suffix for file in marker.files} == {".safetensors", ".json"}
    assert sorted(file for file in marker.files if file.endswith(".safetensors")) == [
        f"shards/rank-0000{rank}-of-00004.safetensors" for rank in range(4)
    ]
    files = ShardFiles(marker)
    expected = {f"model.{key}": value for key, value in build.model().state_dict().items() if key != "lm_head.weight"}
    assert set(files.names("")) >= set(expected)
    read: dict[str, Any] = {key: torch.full_like(value, float("nan")) for key, value in expected.items()}
    dcp.load(read, storage_reader=HuggingFaceStorageReader(str(marker.path / "shards")), no_dist=True)
    for key, value in read.items():
        assert torch.equal(value, files.read(key))
        assert torch.equal(value[1:3], files.read(key, slice(1, 3))), "rows across ranks"


def test_a_version_that_knows_no_shards_refuses_them_by_their_schema(four: tuple[StudyFolder, str]) -> None:
    marker = four[0].state(four[1]).checkpoint(4 * BATCH) / MARKER
    with pytest.raises(UnknownSchema, match="a newer version of ablate"):
        read_marked(marker, 1)


@pytest.mark.parametrize(
    "first, then",
    [
        pytest.param((4, "fsdp"), (4, "fsdp"), marks=pytest.mark.slow),
        ((4, "fsdp"), (2, "fsdp")),
        pytest.param((4, "fsdp"), (1, "auto"), marks=pytest.mark.slow),
        pytest.param((2, "ddp"), (4, "fsdp"), marks=pytest.mark.slow),
        pytest.param((2, "fsdp"), (4, "ddp"), marks=pytest.mark.slow),
        pytest.param((1, "auto"), (2, "fsdp"), marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_at_another_world_size_with_the_same_data_and_losses(
    first: tuple[int, str],
    then: tuple[int, str],
    alone: tuple[StudyFolder, str],
    four: tuple[StudyFolder, str],
    tmp_path: Path,
) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    ended = together(study, name, first[0], strategy=first[1], prepare=stop_at(5, first[0] - 1))
    assert ended == [{"kind": "stopped", "tokens": 5 * BATCH, "steps": 5}] * first[0]
    assert verify(study.state(name).checkpoint(5 * BATCH)).sharded == (first[1] == "fsdp")
    ended = together(study, name, then[0], strategy=then[1])
    assert ended == [{"kind": "trained", "tokens": END, "steps": STEPS - 5}] * then[0]
    assert [event["tokens"] for event in events(study, name, "attempt_started")] == [0, 5 * BATCH]
    assert_close((study, name), alone)
    if first == then:
        assert study.hashes(name) == four[0].hashes(four[1]), "at an equal world the bits are those of an uncut run"


@pytest.mark.slow
def test_average_clipping_and_z_loss_are_those_of_the_whole_batch_also_across_a_restart(tmp_path: Path) -> None:
    pieces = path(optimizer={"clip": 0.05, "z_loss": 1e-2, "ema": 0.9})
    one = trained(tmp_path / "1", 1, pieces)
    study = StudyFolder(tmp_path / "4")
    (name,) = study.declare(pieces, [END])
    together(study, name, 4, prepare=stop_at(7), **FSDP)
    together(study, name, 2, **FSDP)
    assert_close((study, name), one)
    means = [load_file(s.state(n).checkpoint(END) / "ema.safetensors") for s, n in (one, (study, name))]
    assert means[0].keys() == means[1].keys()
    for key in means[0]:
        assert_near(means[1][key], means[0][key])


def _first_update(root: Path, world: int, pieces: list[dict[str, Any]], **settings: Any) -> dict[str, torch.Tensor]:
    study = StudyFolder(root, **settings.pop("study", {}))
    (name,) = study.declare([{**pieces[0], "end": BATCH}], [BATCH])
    assert together(study, name, world, **settings) == [{"kind": "trained", "tokens": BATCH, "steps": 1}] * world
    return tensors(study, name, BATCH)


OPTIMIZERS: Mapping[str, dict[str, Any]] = {
    "adamw": {},
    "muon": {"name": "muon", "momentum": 0.95},
    "lion": {"name": "lion"},
    "sgd": {"name": "sgd", "momentum": 0.9},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_first_update_of_every_optimizer_is_that_of_one_process(name: str, tmp_path: Path) -> None:
    pieces = path(optimizer=OPTIMIZERS[name])
    one = _first_update(tmp_path / "1", 1, pieces)
    four = _first_update(tmp_path / "4", 4, pieces, **FSDP)
    assert one.keys() == four.keys()
    for key in one:
        if name == "lion" and not key.startswith("exp_avg"):  # a sign may turn where a gradient is about 0
            assert float(((four[key] - one[key]).abs() > 1e-3).float().mean()) < 0.02
        elif name == "muon" and not key.startswith(("exp_avg", "momentum")):
            assert float((four[key] - one[key]).norm()) <= 2e-3 * float(one[key].norm())
        else:
            assert_near(four[key], one[key])


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{"tie_word_embeddings": False}, {"model_type": "gpt2"}, {"model_type": "qwen3"}])
def test_models_with_an_own_head_or_of_other_families_can_be_sharded(fields: dict[str, Any], tmp_path: Path) -> None:
    config = build.config_fields(**{"model_type": "llama", **fields})
    config = {key: value for key, value in config.items() if value is not None and key != "vocab_size"}
    one = _first_update(tmp_path / "1", 1, path(), study={"fields": config})
    two = _first_update(tmp_path / "2", 2, path(), study={"fields": config}, **FSDP)
    assert one.keys() == two.keys()
    for key in one:
        assert_near(two[key], one[key])


@pytest.mark.slow
def test_bf16_with_shards_has_the_losses_of_one_process_to_the_rounding_of_bf16(tmp_path: Path) -> None:
    pieces = path(precision="bf16-mixed")
    one = trained(tmp_path / "1", 1, pieces)
    for world in (2, 4):
        study, name = trained(tmp_path / str(world), world, pieces, **FSDP)
        ours, theirs = ([row["loss"] for row in rows(*run)] for run in ((study, name), one))
        assert ours == pytest.approx(theirs, rel=BF16)
        said = read_json(study.state(name).attempt(0) / "env.json")["precision"]
        assert said == "parameters fp32 sharded, gathered as bf16, gradients reduced in fp32"
        assert {value.dtype for value in tensors(study, name).values()} == {torch.float32}


@pytest.mark.slow
def test_gradients_of_micro_batches_are_reduced_once_an_update(tmp_path: Path) -> None:
    counts = tmp_path / "counts"
    counts.mkdir()

    def prepare(ranks: Ranks) -> None:
        plain, count = _fsdp_param_group.foreach_reduce, [0]

        def counted(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            (counts / str(ranks.rank)).write_text(str(count[0]))
            return plain(*arguments, **options)

        _fsdp_param_group.foreach_reduce = counted

    numerics = replace(build.NUMERICS, micro_batch=LENGTH)
    found = []
    for world, strategy in ((1, "auto"), (2, "fsdp")):
        study = StudyFolder(tmp_path / str(world))
        (name,) = study.declare([piece(0, END, lr=RATE)], [END])
        Group(study, name, world, prepare, numerics=numerics, strategy=strategy).wait()
        found.append((study, name))
    assert_close(found[1], found[0])
    units = build.LLAMA["num_hidden_layers"] + 1
    assert [int(file.read_text()) for file in sorted(counts.iterdir())] == [units * STEPS] * 2


def slow_writer(until_update: int) -> Prepare:
    """The first checkpoint is written when `until_update` updates have been made, on every rank but 0."""

    def prepare(ranks: Ranks) -> None:
        if ranks.rank == 0:
            return
        reached, first = threading.Event(), [True]
        write = shard_files.write_tensors

        def slowly(*arguments: Any) -> None:
            if first[0]:
                first[0] = False
                if not reached.wait(30):
                    raise RuntimeError("training waited for the checkpoint")
            write(*arguments)

        shard_files.write_tensors = slowly
        at_update(until_update, reached.set, ranks.rank)(ranks)

    return prepare


def test_training_goes_on_while_a_checkpoint_is_written_and_what_is_kept_is_of_its_beginning(
    four: tuple[StudyFolder, str], tmp_path: Path
) -> None:
    """Four batches after one checkpoint the next is due: it waits for the first. All have the bits of those that
    nothing delayed."""
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    group = Group(study, name, 4, slow_writer(until_update=7), checkpoint_every=4 * BATCH, keep="all", **FSDP)
    assert [end.get("kind") for end in group.wait()] == ["trained"] * 4
    for tokens in (4 * BATCH, 8 * BATCH, END):
        ours, theirs = (verify(s.state(n).checkpoint(tokens)).files for s, n in ((study, name), four))
        assert ours == theirs
    assert study.hashes(name) == four[0].hashes(four[1])


def killed_while_writing(of_rank: int, number: int) -> Prepare:
    """Rank `of_rank` dies while it writes its checkpoint `number`, 0 the first."""

    def prepare(ranks: Ranks) -> None:
        if ranks.rank == of_rank:
            write, count = shard_files.write_tensors, [0]

            def deadly(*arguments: Any) -> None:
                if count[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                count[0] += 1
                write(*arguments)

            shard_files.write_tensors = deadly

    return prepare


@pytest.mark.parametrize(
    "fault, of_rank",
    [
        (at_update(10, lambda: os.kill(os.getpid(), signal.SIGKILL), of_rank=2), 2),
        pytest.param(killed_while_writing(of_rank=1, number=1), 1, marks=pytest.mark.slow),
        pytest.param(killed_while_writing(of_rank=0, number=1), 0, marks=pytest.mark.slow),
        pytest.param(at_update(10, lambda: os.kill(os.getpid(), signal.SIGKILL), of_rank=0), 0, marks=pytest.mark.slow),
    ],
    ids=["in-an-update", "while-writing", "rank-0-while-writing", "rank-0-in-an-update"],
)
def test_a_rank_that_is_killed_ends_the_others_is_named_and_costs_one_checkpoint_at_most(
    fault: Prepare, of_rank: int, alone: tuple[StudyFolder, str], tmp_path: Path
) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    ended = Group(study, name, 4, fault, stays=False, checkpoint_every=4 * BATCH, **FSDP).wait()
    assert ended.pop(of_rank) == {}
    assert [end["error"] for end in ended] == ["RankLost"] * 3
    assert all(f"rank {of_rank} of 4 (process" in end["said"] and " died (" in end["said"] for end in ended)
    state = study.state(name)
    assert states.read_done(state) is None
    assert verify(state.checkpoint(4 * BATCH)).sharded
    newest = states.newest_checkpoint(state)
    assert newest in (4 * BATCH, 8 * BATCH), "the one before that which was being written, or that"
    if of_rank != 0:
        ended_as = read_json(state.attempt(0) / "exit.json")
        assert ended_as["outcome"] == "failed" and f"rank {of_rank} of 4 (process" in ended_as["error"]
        assert list(state.checkpoints.glob(".*.tmp")) == []
    assert [end["steps"] for end in together(study, name, 2, **FSDP)] == [STEPS - newest // BATCH] * 2
    assert_equal_ends((study, name), alone)
    assert list(state.checkpoints.glob(".*.tmp")) == []


def test_a_rank_that_fails_inside_the_model_says_why_to_those_who_wait_for_it(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])

    def prepare(ranks: Ranks) -> None:
        if ranks.rank == 1:
            plain, count = Forward.logits, [0]

            def logits(*arguments: Any) -> Any:
                count[0] += 1
                if count[0] == 3:
                    raise torch.OutOfMemoryError("CUDA out of memory, as it were")
                return plain(*arguments)

            Forward.logits = logits  # type: ignore[method-assign]

    ended = Group(study, name, 2, prepare, stays=False, **FSDP).wait()
    assert ended[1] == {"error": "OutOfMemoryError", "said": "CUDA out of memory, as it were"}
    assert ended[0]["error"] == "RankLost" and "rank 1 of 2 (process" in ended[0]["said"]
    assert "failed: OutOfMemoryError: CUDA out of memory, as it were" in ended[0]["said"]


def test_a_rank_that_fails_between_two_updates_is_heard_before_the_next(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])

    def fail() -> None:
        raise OSError(28, "No space left on device")

    ended = Group(study, name, 2, at_update(3, fail, of_rank=0), **FSDP).wait()
    assert [end["error"] for end in ended] == ["OSError", "RankFailed"]


def test_a_checkpoint_that_one_rank_cannot_write_ends_all_and_leaves_nothing(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])

    def prepare(ranks: Ranks) -> None:
        def full(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        if ranks.rank == 1:
            shard_files.write_tensors = full

    ended = Group(study, name, 2, prepare, checkpoint_every=4 * BATCH, **FSDP).wait()
    assert [end["error"] for end in ended] == ["RankFailed", "OSError"]
    assert "No space left" in ended[0]["said"]
    assert list(study.state(name).checkpoints.iterdir()) == []


@pytest.mark.slow
def test_when_a_newer_attempt_has_begun_nothing_more_is_named(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])
    newer = at_update(4, lambda: begin(study.state(name), {}) and None, of_rank=0)
    ended = Group(study, name, 2, newer, checkpoint_every=3 * BATCH, **FSDP).wait()
    assert [end["kind"] for end in ended] == ["fenced", "fenced"]
    assert study.state(name).checkpoint_tokens() in ([], [3 * BATCH])


def test_what_was_put_together_is_read_back_before_it_is_marked(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare(path(), [END])

    def prepare(ranks: Ranks) -> None:
        plain = shard_saves.save_model

        def altered(model: Any, folder: Path, tokenizer: Path, weights: dict[str, torch.Tensor]) -> None:
            plain(model, folder, tokenizer, {key: value + 1e-7 for key, value in weights.items()})

        shard_saves.save_model = altered

    ended = Group(study, name, 2, prepare, **FSDP).wait()
    assert all("is not what was gathered from the ranks" in end["said"] for end in ended)
    assert list(study.state(name).checkpoints.iterdir()) == []


@pytest.mark.slow
def test_a_run_that_blows_up_is_diverged_on_every_rank(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    (name,) = study.declare([piece(0, 5 * BATCH), piece(5 * BATCH, END, lr=1e38)], [END])
    ended = together(study, name, 2, checkpoint_every=2 * BATCH, **FSDP)
    assert ended == [{"kind": "diverged", "tokens": 6 * BATCH, "steps": 6}] * 2


@pytest.mark.slow
def test_an_inner_sharded_checkpoint_is_where_another_arm_branches_off(
    alone: tuple[StudyFolder, str], four: tuple[StudyFolder, str], tmp_path: Path
) -> None:
    study = StudyFolder(tmp_path)
    first, then = study.declare(path(), [5 * BATCH, END])
    candidate = {"path": str(four[0].state(four[1]).checkpoint(4 * BATCH)), "tokens": 4 * BATCH}
    from harness.train.segment import TrainSettings, train_segment

    how = TrainSettings(build.NUMERICS)
    assert train_segment(study.folder, first, how, extra=[candidate]).steps == 1
    assert train_segment(study.folder, then, how).kind == "trained"
    assert_equal_ends((study, then), alone)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("whose", ["its own", "another segment's"])
def test_a_sharded_checkpoint_at_the_very_end_is_put_together_and_nothing_is_trained(
    world: int, whose: str, tmp_path: Path
) -> None:
    study = StudyFolder(tmp_path)
    (longer,) = study.declare([*path(), piece(END, 2 * END, "after", lr=RATE, blend_from=END)], [2 * END])
    every = {"checkpoint_every": END, "keep": "all"}
    assert [end["kind"] for end in together(study, longer, 2, **FSDP, **every)] == ["trained"] * 2
    (name,) = study.declare(path(), [END])
    there = study.state(longer).checkpoint(END)
    assert verify(there).sharded
    saved = ShardFiles(verify(there))
    if whose == "its own":
        shutil.copytree(there, study.state(name).checkpoint(END))
    settings = FSDP if world > 1 else {}
    extra = [{"path": str(there), "tokens": END}]
    assert (
        Group(study, name, world, extra=extra, **settings).wait()
        == [{"kind": "trained", "tokens": END, "steps": 0}] * world
    )
    assert not verify(study.state(name).checkpoint(END)).sharded
    ours = tensors(study, name)
    for key in ours:
        of = "optimizer" if key.split(".")[0] in ("exp_avg", "exp_avg_sq", "step") else "model"
        assert torch.equal(ours[key], saved.read(f"{of}.{key}")), key
    assert states.verify_state(study.state(name)) is not None


def test_auto_is_ddp_for_small_models_and_fsdp_for_large_ones_and_one_process_divides_nothing() -> None:
    assert choose("auto", 1, 10 * MOST_PARAMETERS_OF_DDP) == "none"
    assert choose("auto", 8, MOST_PARAMETERS_OF_DDP) == "ddp"
    assert choose("auto", 2, MOST_PARAMETERS_OF_DDP + 1) == "fsdp"
    assert choose("ddp", 2, 10 * MOST_PARAMETERS_OF_DDP) == "ddp" and choose("fsdp", 2, 1) == "fsdp"
    with pytest.raises(UserError, match=r"`launch.strategy: fsdp` divides a run among several processes"):
        choose("fsdp", 1, 1)
    with pytest.raises(UserError, match="did you mean `fsdp`"):
        choose("fdsp", 2, 1)
    assert described("ddp", "bf16-mixed") == "parameters fp32, whole on each process, used as bf16 in matrix products"
