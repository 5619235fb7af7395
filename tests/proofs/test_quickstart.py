"""The committed quickstart: its report follows from its records, and its claims hold for seeds it was not tuned on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from analysis.report import build
from tests.proofs.ablate import ablate

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "results" / "quickstart"
UNSEEN = "seeds.data=[11, 12, 13]"

# What the README says that the quickstart shows: (metric, arm) → verdict.
CLAIMS = {
    ("quickstart.arithmetic.correct_prob", "arithmetic=0.5"): "better",
    ("bpb.docs", "arithmetic=0.5"): "worse",
    ("bpb.docs", "constant"): "worse",
    ("quickstart.arithmetic.correct_prob", "decay.tokens=0.52M"): "better",
    ("quickstart.repeated_passage.bits_per_byte", "context-512"): "better",
}


def real(claims: Path) -> dict[tuple[str, str], dict[str, Any]]:
    """(metric, arm) → the claims of a real difference."""
    found = json.loads(claims.read_text())["claims"]
    return {(claim["metric"], claim["arm"]): claim for claim in found if claim["verdict"] in ("better", "worse")}


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_committed_report_is_rebuilt_from_the_committed_records_byte_by_byte(tmp_path: Path) -> None:
    folder = tmp_path / "quickstart"
    shutil.copytree(RECORD, folder, ignore=shutil.ignore_patterns("checkpoints", "manifests"))
    shutil.rmtree(folder / "report")
    build(folder)
    committed = {
        path.relative_to(RECORD): path.read_bytes() for path in (RECORD / "report").rglob("*") if path.is_file()
    }
    rebuilt = {path.relative_to(folder): path.read_bytes() for path in (folder / "report").rglob("*") if path.is_file()}
    assert rebuilt.keys() == committed.keys()
    assert [str(name) for name in committed if rebuilt[name] != committed[name]] == []


def test_the_committed_quickstart_shows_mixture_decay_and_context() -> None:
    found = real(RECORD / "report" / "claims.json")
    assert {key: found[key]["verdict"] for key in CLAIMS} == CLAIMS


def test_no_record_names_a_folder_of_the_machine_that_made_it() -> None:
    for path in RECORD.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".md", ".csv", ".html", ".yaml") and "manifests" not in path.parts:
            text = path.read_text()
            assert str(Path.home()) + "/" not in text, path
            assert str(ROOT) not in text, path


@pytest.mark.slow
def test_its_claims_hold_for_data_seeds_that_it_was_not_tuned_on(tmp_path: Path) -> None:
    study = ROOT / "sweeps" / "quickstart.yaml"
    ablate(tmp_path / "cache", "run", study, "-o", tmp_path / "out", "--set", UNSEEN, "--yes")
    found = json.loads((tmp_path / "out" / "report" / "claims.json").read_text())["claims"]
    unseen = {(claim["metric"], claim["arm"]): claim for claim in found}
    recorded = real(RECORD / "report" / "claims.json")
    for key in CLAIMS:
        low, high = unseen[key]["ci95"]
        assert low * high > 0, f"{key}: the interval [{low}, {high}] holds 0"
    # Every difference that the record marks keeps its sign, also those too near to 0 to be claimed.
    for key, claim in recorded.items():
        assert unseen[key]["difference"] * claim["difference"] > 0, key
