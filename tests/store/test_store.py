"""What a marker says holds, what it does not hold is noticed and named, and a crash loses neither."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from harness.store import atomic, attempts, checkpoints, evaluations, metrics, states
from harness.store.layout import Folder, StateFolder
from harness.store.markers import Damaged, UnknownSchema
from harness.study.errors import UserError


def checkpoint(state: StateFolder, tokens: int, weights: bytes = b"w" * 100) -> checkpoints.CheckpointMarker:
    final = state.checkpoint(tokens)
    staged = atomic.staging_folder(final)
    (staged / "model").mkdir()
    (staged / "model" / "model.safetensors").write_bytes(weights)
    (staged / "model" / "config.json").write_text("{}")
    (staged / "optimizer.safetensors").write_bytes(b"o" * 50)
    return checkpoints.seal(staged, final, fingerprint=f"fp{tokens}", tokens=tokens, step=tokens // 512)


def test_a_sealed_checkpoint_verifies_and_leaves_no_staging_folder(tmp_path: Path) -> None:
    state = Folder(tmp_path).state("s")
    marker = checkpoint(state, 1024)
    assert checkpoints.verify(state.checkpoint(1024)) == marker
    assert (marker.tokens, marker.step, marker.fingerprint) == (1024, 2, "fp1024")
    assert [path.name for path in state.checkpoints.iterdir()] == ["1024"]


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda p: flip_byte(p / "model" / "model.safetensors"), "altered"),
        (lambda p: (p / "optimizer.safetensors").write_bytes(b"o"), "has 1 bytes"),
        (lambda p: (p / "model" / "config.json").unlink(), "missing"),
        (lambda p: (p / "DONE.json").write_bytes(b""), "cannot be read"),
        (lambda p: (p / "DONE.json").unlink(), "no marker"),
        (lambda p: (p / "DONE.json").write_text("[]"), "schema"),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path: Path, damage: object, word: str) -> None:
    state = Folder(tmp_path).state("s")
    for tokens in (512, 1024):
        checkpoint(state, tokens)
    damage(state.checkpoint(1024))  # type: ignore[operator]
    whole, damaged = checkpoints.complete(state)
    assert [marker.tokens for marker in whole] == [512]
    assert len(damaged) == 1
    assert word in str(damaged[0])
    assert "1024" in str(damaged[0])


def test_a_later_schema_is_refused_by_name(tmp_path: Path) -> None:
    state = Folder(tmp_path).state("s")
    checkpoint(state, 512)
    marker = state.checkpoint(512) / "DONE.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "schema": 99}))
    with pytest.raises(UnknownSchema, match="schema 99"):
        checkpoints.verify(state.checkpoint(512))


def test_the_weights_hash_covers_the_model_folder_and_nothing_else(tmp_path: Path) -> None:
    a, b, c = (
        checkpoint(Folder(tmp_path / name).state("s"), 512, w)
        for name, w in zip("abc", (b"1", b"1", b"2"), strict=True)
    )
    assert checkpoints.weights_hash(a.files) == checkpoints.weights_hash(b.files)
    assert checkpoints.weights_hash(a.files) != checkpoints.weights_hash(c.files)
    without_optimizer = {name: record for name, record in a.files.items() if name.startswith("model/")}
    assert checkpoints.weights_hash(a.files) == checkpoints.weights_hash(without_optimizer)


def test_a_state_is_done_only_with_its_own_marker_and_a_whole_checkpoint(tmp_path: Path) -> None:
    state = Folder(tmp_path).state("fp512")
    assert states.verify_state(state) is None
    marker = checkpoint(state, 512)
    states.write_done(state, "trained", 512, 1, checkpoints.weights_hash(marker.files), 512, {"loss": 1.0})
    done = states.verify_state(state)
    assert done is not None
    assert done.outcome == "trained"
    flip_byte(state.checkpoint(512) / "model" / "model.safetensors")
    with pytest.raises(Damaged, match="altered"):
        states.verify_state(state)
    other = Folder(tmp_path).state("fp9")
    other.root.mkdir(parents=True)
    other.done.write_bytes(state.done.read_bytes())
    with pytest.raises(Damaged, match="names state fp512"):
        states.verify_state(other)


def test_an_older_attempt_is_fenced_by_a_newer_one(tmp_path: Path) -> None:
    state = Folder(tmp_path).state("s")
    first = attempts.begin(state, {"device": "cpu"})
    first.check_owner()
    second = attempts.begin(state, {"device": "cpu"})
    second.check_owner()
    with pytest.raises(attempts.Fenced, match="attempt 1"):
        first.check_owner()


def test_a_living_attempt_is_seen_and_a_killed_one_is_not(tmp_path: Path) -> None:
    state = Folder(tmp_path).state("s")
    program = (
        "import sys, time; from harness.store import attempts; from harness.store.layout import StateFolder;"
        f"attempts.begin(StateFolder({str(state.root)!r}), {{}}); print('begun', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        living = attempts.living_attempt(state)
        assert living is not None
        assert living["pid"] == process.pid
        process.kill()
        process.wait()
    assert attempts.living_attempt(state) is None


def test_steps_computed_twice_must_agree(tmp_path: Path) -> None:
    state = Folder(tmp_path).state("s")
    rows = [{"tokens": t, "step": t, "loss": 1.0 / t, "time": t} for t in range(1, 7)]
    for number, part in enumerate((rows[:4], rows[2:])):
        state.attempt(number).mkdir(parents=True)
        writer = metrics.MetricsWriter(state.attempt(number) / "metrics.jsonl", every=2)
        for row in part:
            writer.write({**row, "time": row["time"] + 100 * number})
        writer.flush()
    merged = metrics.read_steps(state)
    assert [row["tokens"] for row in merged.rows] == [1, 2, 3, 4, 5, 6]
    assert merged.disagreements == []
    atomic.append_json_line(state.attempt(1) / "metrics.jsonl", {**rows[1], "loss": 0.5000001})
    assert metrics.read_steps(state).disagreements == [2]


def test_a_torn_last_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    state = Folder(tmp_path).state("s")
    state.attempt(0).mkdir(parents=True)
    (state.attempt(0) / "metrics.jsonl").write_bytes(b'{"tokens": 1, "loss": 1.0}\n{"tokens": 2, "lo')
    assert [row["tokens"] for row in metrics.read_steps(state).rows] == [1]


def test_an_evaluation_is_there_only_while_its_checksums_hold(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    table = pa.table({"doc_id": [0, 1], "acc": [1.0, 0.0]})
    assert not evaluations.exists(folder, "w", "k")
    evaluations.write(folder, "w", "k", {"task": "t", "metrics": {"acc": {"value": 0.5}}}, table)
    assert evaluations.exists(folder, "w", "k")
    assert evaluations.read_samples(folder, "w", "k").equals(table)
    results = folder.evaluation("w", "k") / "results.json"
    results.write_text(results.read_text().replace("0.5", "0.9"))
    assert not evaluations.exists(folder, "w", "k")
    evaluations.write(folder, "w", "k", {"task": "t", "metrics": {}}, table)
    assert evaluations.exists(folder, "w", "k")


def test_a_write_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    """Killed ten times in a loop that replaces a file: what is read is always one whole version."""
    target = tmp_path / "value.json"
    program = (
        "import sys; from pathlib import Path; from harness.store.atomic import write_json\n"
        "n = 0\n"
        f"while True:\n    n += 1; write_json(Path({str(target)!r}), {{'n': n, 'fill': 'x' * 200000}})\n"
        "    if n == 1: print('begun', flush=True)\n"
    )
    for kill in range(10):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(timeout=0.01 + 0.004 * kill)
            except subprocess.TimeoutExpired:
                process.kill()
        value = atomic.read_json(target)
        assert value["n"] >= 1
        assert len(value["fill"]) == 200000


def test_an_attempt_whose_folder_was_moved_away_stops_and_writes_nothing_in_its_place(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "results" / "states" / "s")
    attempt = attempts.begin(state, {})
    attempt.check_owner()
    (tmp_path / "results").rename(tmp_path / "elsewhere")
    (state.attempt(0)).mkdir(parents=True)  # as a line of metrics leaves it
    with pytest.raises(UserError, match="moved or removed while it was worked in"):
        attempt.check_owner()


def test_what_is_removed_while_it_is_looked_at_is_not_there(tmp_path: Path) -> None:
    state = StateFolder(tmp_path / "s")
    assert state.attempt_numbers() == state.checkpoint_tokens() == []
    state.root.write_text("")
    assert state.attempt_numbers() == Folder(state.root).all_submissions() == []
