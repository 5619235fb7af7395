"""Continuations: the same prompts for everybody, the likeliest token after token, and a key of their own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.evals import continuations
from harness.evals.continuations import COLUMNS, Prompt, choose, texts, write
from harness.evals.evaluate import evaluate_state, missing_tasks
from harness.evals.held_out import Document
from harness.evals.measured import check_measured
from harness.evals.settings import EvalSettings, EvalTask
from harness.evals.suites import resolve_tasks, study_settings
from harness.store import evaluations
from harness.store.layout import Folder
from harness.study.errors import UserError
from harness.study.schema import EvalSpec
from tests.evals.conftest import NON_ASCII, STATE, Exported, add_state

CPU = torch.device("cpu")
SETTINGS = EvalSettings(max_length=128, device="cpu", threads=1, window=32, continuations=4)
Sources = Mapping[str, tuple[Sequence[Document], Sequence[Sequence[int]]]]


def source(rows: Sequence[Sequence[int]]) -> tuple[list[Document], list[list[int]]]:
    documents = [
        Document(number, hashlib.sha256(str(list(row)).encode()).hexdigest(), len(row), str(list(row)))
        for number, row in enumerate(rows)
    ]
    return documents, [list(row) for row in rows]


def in_order_of_hash(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    documents, tokens = source(rows)
    return [row for _, row in sorted(zip(documents, tokens, strict=True), key=lambda pair: pair[0].doc_hash)]


@pytest.fixture(scope="module")
def loaded(exported: Exported) -> Iterator[tuple[Any, Any]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(exported.model, dtype=torch.float32).eval()
    yield model, AutoTokenizer.from_pretrained(exported.model)
    torch.set_num_threads(before)


@torch.inference_mode()
def one_by_one(model: Any, prompt: Sequence[int], prefix: int, new_tokens: int) -> list[int]:
    """The likeliest token after everything before it, each time read from the start."""
    ids = [prefix, *prompt]
    for _ in range(new_tokens):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[1 + len(prompt) :]


def test_sources_take_turns_in_the_order_of_their_names_and_documents_in_that_of_their_hash() -> None:
    rows = {name: [[which, number] * 10 for number in range(3)] for which, name in enumerate(("a", "b", "c"))}
    expected = {name: in_order_of_hash(own) for name, own in rows.items()}
    chosen = choose({name: source(rows[name]) for name in ("c", "a", "b")}, 7, 8, 5)
    assert [prompt.source for prompt in chosen] == ["a", "b", "c", "a", "b", "c", "a"]
    for place, prompt in enumerate(chosen):
        row = expected[prompt.source][place // 3]
        assert (list(prompt.tokens), list(prompt.reference)) == (row[:8], row[8:13])


def test_the_order_of_the_file_chooses_no_prompt() -> None:
    rows = [[number] * 20 for number in range(12)]
    assert choose({"a": source(rows)}, 4, 8, 5) == choose({"a": source(rows[::-1])}, 4, 8, 5)


def test_documents_too_short_are_passed_over_where_others_are_long_and_halved_where_none_is() -> None:
    short, long = [[1, 2, 3], [4, 5, 6, 7], [8]], [9] * 16
    (prompt,) = choose({"a": source([*short, long])}, 5, 8, 5)
    assert prompt.tokens == (9,) * 8
    halved = choose({"a": source(short)}, 5, 8, 5)
    assert {(prompt.tokens, prompt.reference) for prompt in halved} == {((1,), (2, 3)), ((4, 5), (6, 7))}


def test_a_text_that_stands_twice_is_one_prompt() -> None:
    assert len(choose({"a": source([[1] * 20, [1] * 20, [2] * 20])}, 5, 8, 5)) == 2


@given(
    rows=st.dictionaries(
        st.sampled_from("abc"), st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=6), max_size=3
    ),
    fewer=st.integers(0, 6),
    more=st.integers(0, 6),
)
def test_more_prompts_are_the_same_ones_and_further_ones(
    rows: Mapping[str, list[list[int]]], fewer: int, more: int
) -> None:
    sources: Sources = {name: source(own) for name, own in rows.items()}
    few, many = choose(sources, fewer, 4, 3), choose(sources, fewer + more, 4, 3)
    assert many[: len(few)] == few and len(few) <= fewer
    for prompt in many:
        row = [*prompt.tokens, *prompt.reference]
        assert 0 < len(prompt.tokens) <= 4 and len(prompt.reference) <= 3
        assert any(own[: len(row)] == row for own in rows[prompt.source])


def test_what_is_written_is_the_likeliest_token_each_time_whatever_stands_beside_it(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    generator = torch.Generator().manual_seed(3)
    lengths = [5] * (continuations.TOGETHER + 2) + [9, 2, 9]
    prompts = [torch.randint(1, 400, (length,), generator=generator).tolist() for length in lengths]
    together = write(model, prompts, 0, None, 7, CPU)
    assert together == [one_by_one(model, prompt, 0, 7) for prompt in prompts]
    assert len({tuple(row) for row in together}) > len(prompts) // 2, "the model writes differently after each prompt"
    assert write(model, prompts[::-1], 0, None, 7, CPU) == together[::-1]
    assert write(model, prompts, 0, None, 0, CPU) == [[] for _ in prompts]


def test_a_continuation_ends_before_the_end_of_the_document_and_the_others_go_on(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    prompts = [[5, 9, 200], [7, 7, 7], [300, 12, 4]]
    free = write(model, prompts, 0, None, 12, CPU)
    end = free[0][4]  # taken for the end: what stands after it is not written
    expected = [row[: row.index(end)] if end in row else row for row in free]
    assert write(model, prompts, 0, end, 12, CPU) == expected
    assert len(expected[0]) < 12 and max(map(len, expected)) == 12


def test_a_model_without_a_cache_writes_the_same(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded

    class Forgetful(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, past_key_values: Any, use_cache: bool) -> Any:
            assert past_key_values is None and use_cache
            return model(input_ids=input_ids, use_cache=False)

    prompts = [[5, 9, 200], [7, 8]]
    assert write(Forgetful(), prompts, 0, None, 6, CPU) == write(model, prompts, 0, None, 6, CPU)


def test_the_model_s_own_generation_settings_change_nothing(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    before = write(model, [[5, 9, 200]], 0, None, 12, CPU)
    settings = model.generation_config
    model.generation_config = type(settings)(do_sample=True, temperature=9.0, repetition_penalty=5.0)
    try:
        assert write(model, [[5, 9, 200]], 0, None, 12, CPU) == before
    finally:
        model.generation_config = settings


def test_texts_join_to_the_document_and_no_character_is_broken(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    ids = tokenizer(NON_ASCII, add_special_tokens=False)["input_ids"]
    for cut in range(1, len(ids)):
        prompt, rest = texts(tokenizer, ids[:cut], ids[cut:])
        assert prompt + rest == NON_ASCII and "\ufffd" not in prompt
    assert texts(tokenizer, ids, [], ids) == (NON_ASCII, "", NON_ASCII)


def test_a_tokenizer_that_drops_a_leading_space_loses_none() -> None:
    class Dropping:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(f" {number}" for number in ids).removeprefix(" ")

    assert texts(Dropping(), [1, 2], [3, 4]) == ("1 2", " 3 4")


def tasks_of(manifests: Mapping[str, Any], settings: EvalSettings = SETTINGS, **spec: Any) -> list[EvalTask]:
    return resolve_tasks(EvalSpec.model_validate(spec), manifests, settings)


def task_of(manifests: Mapping[str, Any], settings: EvalSettings = SETTINGS, **spec: Any) -> EvalTask:
    (task,) = (task for task in tasks_of(manifests, settings, **spec) if task.kind == "continuations")
    return task


@pytest.mark.parametrize(
    ("change", "re_keyed"),
    [
        ({"continuations": 5}, True),
        ({"max_length": 64}, True),  # fewer tokens fit
        ({"max_length": 512}, False),
        ({"batch_size": 3}, False),
        ({"window": 64}, False),
        ({"documents": 10}, False),
        ({"by_position": True}, False),
        ({"device": "cuda"}, False),
    ],
)
def test_the_key_follows_what_is_written(manifest: dict[str, Any], change: dict[str, Any], re_keyed: bool) -> None:
    before = task_of({"web": manifest}).key
    assert (task_of({"web": manifest}, replace(SETTINGS, **change)).key != before) is re_keyed


def test_changing_the_number_of_prompts_re_keys_no_other_task(manifest: dict[str, Any]) -> None:
    keys = {}
    for count in (0, 4, 9):
        tasks = tasks_of({"web": manifest}, replace(SETTINGS, continuations=count), suites=["smoke@1"])
        keys[count] = {(task.suite, task.task): task.key for task in tasks}
    written = ("continuations", "continuations")
    assert written not in keys[0] and keys[4].pop(written) != keys[9].pop(written)
    assert keys[0] == keys[4] == keys[9]


def test_the_key_follows_the_sources_and_their_names_and_not_their_order_or_place(manifest: dict[str, Any]) -> None:
    other = {**manifest, "identity": "d" * 64}
    key = task_of({"a": manifest, "b": other}).key
    assert task_of({"b": other, "a": {**manifest, "tokens": "/elsewhere", "tokenizer": "x"}}).key == key
    assert len({key, task_of({"a": manifest}).key, task_of({"a": manifest, "c": other}).key}) == 3


def test_without_any_held_out_text_there_are_none_or_the_request_is_refused(manifest: dict[str, Any]) -> None:
    nothing = {"web": {**manifest, "held_out": {**manifest["held_out"], "documents": 0}}}
    assert [task.kind for task in tasks_of(nothing)] == ["held_out"]
    with pytest.raises(UserError, match="no source has any"):
        tasks_of(nothing, continuations=4)


def test_ten_are_continued_where_held_out_text_is_evaluated_and_as_many_as_are_asked_for() -> None:
    counts = [({}, 0), ({"held_out": {"window": 32}}, 10), ({"continuations": 3}, 3)]
    counts += [({"held_out": {"window": 32}, "continuations": 0}, 0)]
    for spec, count in counts:
        assert study_settings(EvalSpec.model_validate(spec), 64).continuations == count


def test_prompt_and_continuation_fit_into_max_length() -> None:
    for length in range(1, 200):
        settings = replace(SETTINGS, max_length=length)
        assert settings.prompt_tokens + settings.new_tokens <= length and settings.prompt_tokens >= 1
    assert (SETTINGS.prompt_tokens, SETTINGS.new_tokens) == (32, 48)


def test_continuations_cannot_be_compared(manifest: dict[str, Any]) -> None:
    tasks = tasks_of({"web": manifest}, tasks=["copa"])
    with pytest.raises(UserError, match="texts to read"):
        check_measured(["continuations.continuations.acc"], tasks)


def evaluated(folder: Folder, state: str, weights: str, task: EvalTask, settings: EvalSettings) -> tuple[Any, Any]:
    evaluate_state(folder, state, [task], settings)
    assert missing_tasks(folder, weights, [task]) == []
    table = evaluations.read_samples(folder, weights, task.key)
    assert table.column_names == list(COLUMNS) and {str(kind) for kind in table.schema.types} == {"string"}
    return evaluations.read_results(folder, weights, task.key), table.to_pylist()


def test_two_models_continue_the_same_prompts_with_their_own_words(manifest: dict[str, Any], tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    states = [add_state(folder, STATE, seed=0), add_state(folder, "b" * 64, seed=1)]
    task = task_of({"web": manifest, "also": manifest})
    (results, one), (_, two) = (
        evaluated(folder, name, state.weights, task, SETTINGS)
        for name, state in zip((STATE, "b" * 64), states, strict=True)
    )
    assert results["metrics"] == {} and results["headline"] is None and results["items"] == len(one) == 4
    assert [row["source"] for row in one] == ["also", "web", "also", "web"]
    shown = [[(row["source"], row["prompt"], row["reference"]) for row in rows] for rows in (one, two)]
    assert shown[0] == shown[1]
    assert [row["continuation"] for row in one] != [row["continuation"] for row in two]
    documents = [json.loads(line)["text"] for line in (Path(manifest["tokens"]) / "held_out.jsonl").open()]
    assert all(any(text.startswith(row["prompt"] + row["reference"]) for text in documents) for row in one)


def test_neither_the_batch_size_nor_another_evaluation_changes_what_is_written(
    manifest: dict[str, Any], tmp_path: Path
) -> None:
    found = []
    for place, settings in enumerate((SETTINGS, replace(SETTINGS, batch_size=1, documents=2, window=None))):
        folder = Folder(tmp_path / str(place))
        state = add_state(folder, STATE, seed=0)
        task = task_of({"web": manifest}, settings)
        found.append((task.key, evaluated(folder, STATE, state.weights, task, settings)[1]))
    assert found[0] == found[1]


def test_documents_too_short_to_be_continued_give_an_empty_table(manifest: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "held_out.jsonl").write_text('{"text": "."}\n', "utf-8")
    folder = Folder(tmp_path / "results")
    state = add_state(folder, STATE, seed=0)
    task = task_of({"web": {**manifest, "tokens": str(tmp_path)}})
    results, rows = evaluated(folder, STATE, state.weights, task, SETTINGS)
    assert rows == [] and results["items"] == 0


def test_rows_are_one_a_prompt(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    prompt = Prompt("web", "h", (40, 41), (42,))
    (row,) = continuations.rows(tokenizer, [prompt], [[43]])
    assert tuple(row) == COLUMNS and row["source"] == "web"
    assert row["prompt"] + row["continuation"] == tokenizer.decode([40, 41, 43])
