from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.study import Mistake, StudyError, load_study
from tests.study.conftest import BASE, STAGES, Load


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / f"{name}.yaml"
        path.write_text(text)
    return folder / "study.yaml"


def test_later_includes_win_and_the_including_file_wins_over_all(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base=BASE + STAGES,
        first="question: first\nnotes: first\ntrain: {precision: bf16-mixed, context: {length: 64}}\n",
        second="question: second\ntrain: {context: {length: 32}}\n",
        study="include: [base.yaml, first.yaml, second.yaml]\nquestion: mine\n",
    )
    study = load_study(path)
    assert (study.spec.question, study.spec.notes) == ("mine", "first")
    assert study.arms[0].treatment.stages[0].context.length == 32
    assert study.arms[0].treatment.stages[0].precision == "bf16-mixed"
    assert "include" not in study.resolved
    assert study.text == path.read_text()


def test_includes_are_relative_to_the_file_that_includes(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    write(tmp_path / "common", base=BASE + STAGES, all="include: [base.yaml]\n")
    study = load_study(write(tmp_path, study="include: [common/all.yaml]\n"))
    assert study.spec.study == "small"


def test_two_files_may_include_the_same_third(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        base=BASE + STAGES,
        one="include: [base.yaml]\n",
        two="include: [base.yaml]\nquestion: two\n",
        study="include: [one.yaml, two.yaml]\n",
    )
    assert load_study(path).spec.question == "two"


def test_an_included_mixture_is_replaced_whole(tmp_path: Path) -> None:
    path = write(tmp_path, base=BASE + STAGES, study="include: [base.yaml]\ntrain: {mixture: {math: 1}}\n")
    assert dict(load_study(path).arms[0].treatment.stages[0].mixture) == {"math": 1}


def test_set_reads_its_value_as_yaml_and_wins_over_the_file(load: Load) -> None:
    study = load("", "stages.decay.lr.to=0.1x", "seeds.data=[1, 2]", "train.optimizer.lr=3e-4", "launch.jobs=2")
    lr = study.arms[0].treatment.stages[1].lr
    assert lr is not None and lr.end == 3e-5
    assert [seeds.name for seeds in study.seed_sets] == ["d1", "d2"]
    assert study.spec.launch.jobs == 2


def test_set_may_allow_a_finding_of_an_arm_that_the_file_does_not_name(load: Load) -> None:
    study = load("", "compare.allow.default=[no-control]")
    assert study.spec.compare.allow == {"default": ["no-control"]}


def test_a_later_set_wins(load: Load) -> None:
    assert load("", "study=one", "study=two").spec.study == "two"


def test_names_with_dots_are_found_by_set(load: Load) -> None:
    stages = STAGES.replace("decay", "decay.1")
    assert load("", "stages.decay.1.lr.to=1e-3", stages=stages).arms[0].treatment.stages[1].name == "decay.1"


@pytest.mark.parametrize("text", ["no", "off", "Yes", "2001-01-01", "1:30", "~10B", "2^21", "0.1x"])
def test_what_yaml_1_1_would_turn_into_something_else_stays_text(load: Load, text: str) -> None:
    assert load(f"question: {text}\n").spec.question == text


def test_anchors_may_be_used_for_plain_values(load: Load) -> None:
    stages = STAGES.replace("stable: {", "stable: {mixture: &mix {web: 1}, ").replace(
        "decay: {", "decay: {mixture: *mix, "
    )
    treatment = load("", stages=stages).arms[0].treatment
    assert treatment.stages[0].mixture is treatment.stages[1].mixture


def test_a_mistake_of_another_room_is_placed_where_the_value_stands(load: Load) -> None:
    study = load()
    error = study.error(Mistake(("sources", "math", "builtin"), "is not there"))
    assert str(error).endswith("study.yaml:10:19: sources.math.builtin: is not there")


def test_what_a_stage_inherits_is_placed_in_train(load: Load) -> None:
    error = load().error(Mistake(("stages", "decay", "context", "length"), "is longer than the base allows"))
    assert str(error).endswith("study.yaml:14:21: train.context.length: is longer than the base allows")


def test_what_is_missing_is_placed_at_the_innermost_block(load: Load) -> None:
    error = load().error(Mistake(("stages", "decay", "lr", "from"), "is needed"))
    assert str(error).endswith("study.yaml:19:26: stages.decay.lr.from: is needed")


def test_a_mistake_of_an_arm_is_placed_at_the_change_that_bears_on_it(load: Load) -> None:
    study = load(
        "ablate:\n"
        "  - grid:\n"
        "      - stages.decay.tokens: [10240, 20480]\n"
        "      - mixture: {stage: decay, vary: math, values: [0.1, 0.5], absorb: web}\n"
    )
    arm = "math=0.5,decay.tokens=20480"
    tokens = study.error(Mistake(("stages", "decay", "tokens"), "is too much"), arm)
    assert f"study.yaml:22:38: stages.decay.tokens: in arm `{arm}`, is too much" in str(tokens)
    mixture = study.error(Mistake(("stages", "decay", "mixture", "math"), "runs short"), arm)
    assert "study.yaml:23:59: stages.decay.mixture.math: in arm" in str(mixture)


def test_a_missing_study_names_the_nearest_file(tmp_path: Path) -> None:
    write(tmp_path, decay="schema: 1\n")
    with pytest.raises(StudyError, match=r"did you mean `decay\.yaml`"):
        load_study(tmp_path / "decai.yaml")


@pytest.mark.parametrize("text", ["", "a: [1", "a: \x07", "\tx: 1", "- 1", "? [1]\n: 2"])
def test_no_text_ends_in_a_traceback(tmp_path: Path, text: str) -> None:
    with pytest.raises(StudyError):
        load_study(write(tmp_path, study=text))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('question: "a\\ud800b"', r"study\.yaml:20:11: question: holds the character \\ud800"),
        ('include: ["a\\0b"]', r"study\.yaml:20:11: include\[0\]: holds the character \\u0000"),
        ('notes: {"a\\0b": 1}', r"study\.yaml:20:9: notes: holds the character \\u0000"),
        (
            "eval: {limit: 1000000000000000000000000000000}",
            r"study\.yaml:20:15: eval\.limit: `10+` is more than 64 bits",
        ),
        ("seeds: {data: [18446744073709551616]}", r"seeds\.data\[0\]: `18446744073709551616` is more than 64 bits"),
        (f"seeds: {{data: [0x{'f' * 9000}]}}", r"seeds\.data\[0\]: `0xf+\.\.\.` is more than 64 bits"),
        ("eval: {max_length: 2^99}", r"eval\.max_length: 2\^99 is more than 64 bits"),
    ],
)
def test_what_no_file_or_no_64_bits_can_hold_is_refused_at_its_place(load: Load, more: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        load(more)


def test_seeds_may_be_as_large_as_63_bits_hold(load: Load) -> None:
    seeds = load(f"seeds: {{init: [{2**63 - 1}], data: [{2**63 - 1}]}}").seed_sets[0]
    torch.manual_seed(seeds.init)


def test_a_file_that_is_no_text_is_refused_at_its_byte(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes((BASE + STAGES + "notes: Größe\n").encode("latin-1"))
    with pytest.raises(StudyError, match=r"study\.yaml:\d+:10: the byte 0xf6 is not UTF-8; expected"):
        load_study(path)
    path.write_text("study: a\x07b\n")
    with pytest.raises(StudyError, match=r"study\.yaml:1:9: holds the character \\u0007"):
        load_study(path)


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/one.yaml").touch()
    with pytest.raises(StudyError, match=r"is a folder; expected a YAML file\. Valid here: .*studies/one\.yaml"):
        load_study(tmp_path / "studies")


def test_an_included_file_need_be_no_study_but_holds_keys(tmp_path: Path) -> None:
    path = write(tmp_path, part="# nothing yet\n", study="include: [part.yaml]\n" + BASE + STAGES)
    with pytest.raises(StudyError, match=r"part\.yaml:1:1: is empty; expected keys of a study"):
        load_study(path)


@pytest.mark.parametrize(
    ("text", "place", "meant"),
    [
        ("train:\n\tbatch_tokens: 1\n", "2:1", "expected spaces, not a tab"),
        ("study:careless\nbase: 1\n", "2:5", "a space after every colon"),
        ("train: {a: 1\nstages: 2\n", "2:7", "(it begins in line 1); expected `}` after the last entry"),
        ("notes: 'open\nstudy: x\n", "1:8", "a quote at its end"),
        ("study: x\nbase\n", "2:1", "expected `key: value`"),
        ("a: " + "[" * 5000 + "]" * 5000, "", "is nested too deeply; expected at most 64 levels"),
    ],
)
def test_what_is_no_yaml_is_said_with_what_was_meant(tmp_path: Path, text: str, place: str, meant: str) -> None:
    with pytest.raises(StudyError) as caught:
        load_study(write(tmp_path, study=text))
    assert f"study.yaml:{place}" in str(caught.value) and meant in str(caught.value)
