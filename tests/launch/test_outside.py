"""`ablate eval --model`: a model from outside as a row of a real study's table, and what must not change by that."""

from __future__ import annotations

import csv
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.evals import evaluate
from harness.launch.gc import garbage
from harness.store import manifests
from harness.store.layout import Folder
from harness.study.errors import UserError
from tests.evals.conftest import EOS, export_model, tokenizer
from tests.proofs.small import write_small
from tests.train.test_base import write_gguf

COMMIT = "0123456789" * 4
WINDOW = 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, token_store: Path) -> Path:
    """A study after one real run, and a model of other shape and tokenizer. Tests copy it."""
    root = tmp_path_factory.mktemp("trained")
    study = write_small(root)
    study.write_text(
        study.read_text()
        .replace("documents: 4}", "documents: 4, by_position: true}")
        .replace("max_length: 64", "max_length: 512")
    )
    export_model(root / "reference", seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ABLATE_CACHE", str(token_store))
        assert cli.call(["run", str(study), "-o", str(root / "out"), "--executor", "debug"]) == 0
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "study")
    monkeypatch.chdir(tmp_path / "study")
    return tmp_path / "study"


def add(model: str = "reference", *more: str, code: int = 0) -> None:
    assert cli.call(["eval", "--model", model, "-o", "out", *more]) == code


def run() -> None:
    assert cli.call(["run", "small.yaml", "-o", "out", "--executor", "debug"]) == 0


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock and the cache of checksums, which no result is part of."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.name not in (".lock", ".checksums.json")
    }


def table() -> list[dict[str, str]]:
    return list(csv.DictReader(Path("out/report/table.csv").read_text().splitlines()))


def row(name: str) -> dict[str, dict[str, str]]:
    """The lines of one row of the table by metric."""
    return {line["metric"]: line for line in table() if line["row"] == name}


def bits_per_byte(model: Path, source: str) -> float:
    """By plain transformers, document by document and token by token: the definition."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.evals.held_out import read_documents

    manifest = manifests.read_source(Folder("out"), source)
    assert manifest is not None
    words, net = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    nats, size = 0.0, 0
    for document in read_documents(Path(manifest["tokens"]) / "held_out.jsonl", 4):
        ids = [words.eos_token_id, *words(document.text, add_special_tokens=False)["input_ids"]]
        size += document.size
        for start in range(0, len(ids) - 1, WINDOW):
            piece = torch.tensor([ids[start : start + WINDOW + 1]])
            with torch.inference_mode():
                logits = net(piece[:, :-1]).logits[0].double()
            nats += float(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum"))
    return nats / size / math.log(2)


def test_a_model_is_a_row_with_its_own_numbers_and_nothing_else_of_the_report_changes(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, claims, figures = table(), Path("out/report/claims.json").read_bytes(), contents(Path("out/report/figures"))
    run_before = contents(Path("out/runs"))
    capsys.readouterr()
    add()
    assert "evaluated reference on 2 tasks" in capsys.readouterr().out
    assert [line for line in table() if line["row"] != "reference"] == before
    assert Path("out/report/claims.json").read_bytes() == claims and contents(Path("out/report/figures")) == figures
    own = row("reference")
    for source in ("sums", "more"):
        line = own[f"bpb.{source}"]
        assert float(line["mean"]) == pytest.approx(bits_per_byte(Path("reference"), source), rel=1e-5)
        assert (line["kind"], line["n"], line["run_se"], line["difference"], line["verdict"]) == ("outside", "1") + (
            "",
        ) * 3
        assert float(line["item_se"]) > 0
    per_token = {name: line["mean"] for name, line in own.items() if "nats_per_token" in name}
    assert per_token and set(per_token.values()) == {""}, "another tokenizer's tokens are no unit of this column"
    markdown, page = (Path(f"out/report/{name}").read_text() for name in ("report.md", "index.html"))
    assert "| reference (outside model, 0.16M parameters, another tokenizer) | 1 model |" in markdown
    assert " differs: " not in markdown, "the model was computed as the arms were"
    assert "outside model, 0.16M parameters, another tokenizer" in page and "no part in the study" in page
    assert "reference (outside model) & 1/1 &" in Path("out/report/table_main.tex").read_text()

    assert subprocess.run(["bash", "-n", "out/report/reproduce.sh"]).returncode == 0

    there = contents(Path("out"))
    add()
    assert "evaluated reference on 0 tasks" in capsys.readouterr().out and contents(Path("out")) == there
    run()
    said = capsys.readouterr().out
    assert "trained 0 tokens, evaluated 0 states" in said and "writing the report" not in said
    assert contents(Path("out")) == there and contents(Path("out/runs")) == run_before
    assert garbage(Folder("out")).found == ()
    assert cli.call(["verify", "out"]) == 0 and cli.call(["report", "out"]) == 0 and contents(Path("out")) == there


def test_without_its_file_it_is_no_row_any_more(root: Path) -> None:
    before = contents(Path("out/report"))
    add()
    assert contents(Path("out/report")) != before
    Path("out/models/reference.json").unlink()
    run()
    assert contents(Path("out/report")) == before


def test_a_model_that_the_study_has_made_shares_its_results_and_is_measured_per_token_too(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.call(["export", "out", "default", "ours"]) == 0
    capsys.readouterr()
    add("ours", "--name", "last-month")
    assert "evaluated last-month on 0 tasks" in capsys.readouterr().out
    default, ours = row("default"), row("last-month")
    assert any("nats_per_token" in name for name in ours)
    assert {name: line["mean"] for name, line in ours.items()} == {n: line["mean"] for n, line in default.items()}
    assert "last-month (outside model, " in (markdown := Path("out/report/report.md").read_text())
    assert "another tokenizer" not in markdown


def test_a_further_suite_is_the_models_alone_until_the_arms_are_evaluated_on_it(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, claims = table(), Path("out/report/claims.json").read_bytes()
    add("reference", "--suite", "smoke@1")
    metric = "smoke.repeated_passage.bits_per_byte"
    assert row("reference")[metric]["mean"] and row("default")[metric] | {"metric": ""} != before
    assert row("default")[metric]["mean"] == "" and row("default")[metric]["done"] == "1"
    assert [
        line for line in table() if line["row"] != "reference" and not line["metric"].startswith("smoke.")
    ] == before
    assert Path("out/report/claims.json").read_bytes() == claims
    value = row("reference")[metric]["mean"]
    assert cli.call(["eval", "out", "--suite", "smoke@1", "--executor", "debug"]) == 0
    assert row("default")[metric]["mean"] and row("reference")[metric]["mean"] == value
    capsys.readouterr()
    add()
    assert "on 0 tasks" in capsys.readouterr().out


WRONG = [
    (["--model", "nowhere", "-o", "out"], "there is no such folder or file here; for an id on the hub, add"),
    (["--model", "./nowhere", "-o", "out"], "`--model ./nowhere`: there is no nowhere."),
    (["--model", "nowhere.gguf", "-o", "out"], "there is no nowhere.gguf"),
    (["--model", "org/name", "-o", "out", "--revision", "main"], "with a commit, 40 hexadecimal digits"),
    (["--model", "reference", "-o", "out", "--revision", COMMIT], "is of a model on the hub"),
    (["--model", "reference", "-o", "nowhere"], "nowhere is not a results folder"),
    (["--model", "reference", "-o", "reference"], "reference is not a results folder"),
    (["--model", "out", "-o", "out"], "is a folder without a config.json; expected"),
    (["--model", "small.yaml", "-o", "out"], "is a file, and no .gguf one; expected"),
    (["--model", "reference", "-o", "out", "--name", "default"], "`default` is the name of an arm of the study"),
    (["--model", "reference", "-o", "out", "--name", "base"], "`base` is the name of the base's row"),
    (["--model", "reference", "-o", "out", "--name", "a/b"], "cannot name a model's row"),
    (["--model", "reference", "-o", "out", "--suite", "smoke@9"], "did you mean `smoke@1`?"),
    (["--model", "reference"], "`--model` needs `-o DIR`"),
    (["out", "--model", "reference"], "name the folder with `-o out`"),
    (["--model", "reference", "-o", "out", "--executor", "slurm"], "leave `--executor slurm` away"),
    (["--model", "reference", "-o", "out", "--jobs", "2"], "`--jobs` has no meaning"),
    (["out", "--name", "x"], "`--name` goes with `--model`"),
    (["out", "--revision", COMMIT], "`--revision` goes with `--model`"),
    (["-o", "out"], "`-o` goes with `--model`"),
    ([], "the results folder is missing"),
]


@pytest.mark.parametrize(("call", "said"), WRONG)
def test_a_wrong_call_is_one_paragraph_and_changes_nothing(
    call: list[str], said: str, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    before = contents(trained / "out")
    capsys.readouterr()
    assert cli.call(["eval", *call]) == 2
    found = capsys.readouterr().err
    assert said in found and len(found.splitlines()) == 1, found
    assert contents(trained / "out") == before


def test_a_task_that_fails_leaves_the_others_and_the_next_call_does_it_alone(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = evaluate._held_out

    def failing(lm: Any, model: Path, task: Any, settings: Any) -> Any:
        if task.task == "sums":
            raise UserError("the text is gone.")
        return plain(lm, model, task, settings)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_held_out", failing)
        capsys.readouterr()
        assert cli.call(["eval", "--model", "reference", "-o", "out", "--json"]) == 1
        said = json.loads(capsys.readouterr().out)
    assert (said["model"], said["evaluated"], said["failed"]) == ("reference", 1, "bpb.sums: the text is gone.")
    assert row("reference")["bpb.more"]["mean"] and not row("reference")["bpb.sums"]["mean"]
    assert "| not evaluated whole |" in Path("out/report/report.md").read_text()
    assert not list(Path("out/models").glob(".*")), "what was written aside is gone"
    assert cli.call(["eval", "--model", "reference", "-o", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["evaluated"] == 1 and row("reference")["bpb.sums"]["mean"]


def test_other_weights_of_the_same_name_are_refused_and_the_first_stay(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add()
    before = contents(Path("out"))
    export_model(root / "other" / "reference", seed=4)
    capsys.readouterr()
    add("other/reference", code=2)
    said = capsys.readouterr().err
    assert "out/models/reference.json is of other weights" in said and len(said.splitlines()) == 1
    assert contents(Path("out")) == before
    add("other/reference", "--name", "reference-4")
    assert row("reference")["bpb.sums"]["mean"] != row("reference-4")["bpb.sums"]["mean"]


def test_a_study_that_was_changed_since_is_brought_up_first(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = root / "small.yaml"
    study.write_text(study.read_text().replace("documents: 4,", "documents: 3,"))
    add(code=2)
    said = capsys.readouterr().err
    assert "small.yaml was changed since out was brought to it" in said and "`ablate eval out`" in said
    assert not Path("out/models").exists()
    assert cli.call(["eval", "out", "--executor", "debug"]) == 0
    add()
    assert row("reference")["bpb.sums"]["mean"]


def test_learned_positions_that_end_before_the_window_does_are_refused(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, GPT2Config

    words = tokenizer()
    small = GPT2Config(vocab_size=len(words), n_positions=32, n_embd=16, n_layer=1, n_head=2)
    AutoModelForCausalLM.from_config(small).save_pretrained("short")
    words.save_pretrained("short")
    capsys.readouterr()
    add("short", code=2)
    assert "short has 32 positions and no rotary ones" in capsys.readouterr().err
    assert not Path("out/models").exists()


def test_a_model_on_the_hub_is_recorded_with_its_id_and_commit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from harness.data import tokenizer as tokenizers

    asked: list[tuple[str, str | None]] = []
    local = root / "reference"
    shutil.move(local, root / "snapshot")

    def download(name: str, revision: str | None, **_: Any) -> str:
        asked.append((name, revision))
        return str(root / "snapshot")

    plain = tokenizers._from_pretrained

    def opened(name: str, folder: Path, revision: str | None) -> Any:
        asked.append((name, revision))
        return plain(str(root / "snapshot"), folder, None)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(tokenizers, "_from_pretrained", opened)
    add("org/reference", "--revision", COMMIT)
    assert set(asked) == {("org/reference", COMMIT)} and len(asked) > 1
    record = json.loads(Path("out/models/reference.json").read_text())
    assert (record["kind"], record["model"], record["revision"]) == ("hub", "org/reference", COMMIT)
    call = f"eval --model org/reference --name reference --revision {COMMIT} -o"
    assert call in Path("out/report/reproduce.sh").read_text()


def test_a_gguf_file_is_a_model_with_the_same_numbers_as_the_folder_that_it_was_made_of(root: Path) -> None:
    from transformers import AutoModelForCausalLM

    words = json.loads(Path("reference/tokenizer.json").read_text())["model"]
    assert words["vocab"][EOS] == 0
    vocabulary = {**words["vocab"], "<|endoftext|>": len(words["vocab"])}  # which transformers adds to every such file
    model = AutoModelForCausalLM.from_pretrained("reference")
    model.resize_token_embeddings(len(vocabulary))
    model.save_pretrained("reference")
    write_gguf(root / "small.gguf", model, vocabulary, [" ".join(pair) for pair in words["merges"]])
    add()
    add("small.gguf")
    record = json.loads(Path("out/models/small.json").read_text())
    assert record["kind"] == "gguf"
    for metric in ("bpb.sums", "bpb.more"):
        assert float(row("small")[metric]["mean"]) == pytest.approx(float(row("reference")[metric]["mean"]), rel=1e-5)


def test_a_record_of_a_newer_version_is_refused_and_a_damaged_one_is_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add()
    path = Path("out/models/reference.json")
    plain = path.read_bytes()
    path.write_text(json.dumps({**json.loads(plain), "schema": 7}))
    before = contents(Path("out"))
    for call in (["report", "out"], ["verify", "out"], ["eval", "--model", "reference", "-o", "out"]):
        capsys.readouterr()
        assert cli.call(call) == 2
        assert f"{path} was written by a newer version of ablate" in capsys.readouterr().err
    assert contents(Path("out")) == before
    path.write_bytes(plain[:40])
    assert cli.call(["verify", "out"]) == 1 and cli.call(["report", "out"]) == 0
    assert "Damaged and left out: out/models/reference.json" in Path("out/report/index.html").read_text()
    add()
    assert path.read_bytes() == plain and cli.call(["verify", "out"]) == 0
