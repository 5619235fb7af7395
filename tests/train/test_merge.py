"""A mean of weights is the mean of what the folders of its parts hold, bit for bit; what has no mean is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from harness.plan.merges import coefficients_of, decay_weights, mean_recipe, merge_id
from harness.store import attempts, checkpoints, states
from harness.store.checkpoints import TOKENIZER_FILES
from harness.study.errors import UserError
from harness.train import merge as merging
from harness.train.merge import merge_state, weighted_mean
from harness.train.model import load_model
from tests.train import build

BATCH = build.BATCH
END = 6 * BATCH
ENVIRONMENT = {"numerics": build.NUMERICS.record(), "code": {}}


def trunk(folder: Path) -> tuple[build.StudyFolder, list[str]]:
    """Three checkpoints of a constant-rate trunk."""
    study = build.StudyFolder(folder)
    names = study.declare([build.piece(0, END, "stable")], [2 * BATCH, 4 * BATCH, END])
    for name in names:
        study.train(name)
    return study, names


def declare(study: build.StudyFolder, parts: Sequence[str], coefficients: Sequence[Fraction]) -> str:
    recipe = mean_recipe(parts, coefficients)
    name = merge_id(recipe)
    segment = {**states.read_segment(study.state(parts[-1])), "id": name, "kind": "merge", "recipe": recipe}
    states.write_segment(study.state(name), {**segment, "parent": parts[-1], "tokens_from": END, "tokens_to": END})
    return name


def tensors(study: build.StudyFolder, name: str, tokens: int) -> dict[str, torch.Tensor]:
    return load_file(study.state(name).checkpoint(tokens) / "model/model.safetensors")


def test_equal_weights_give_the_plain_mean_of_the_folders_bit_for_bit(tmp_path: Path) -> None:
    study, names = trunk(tmp_path)
    name = declare(study, names, coefficients_of(decay_weights("linear", Fraction(0), 2)))
    assert merge_state(study.folder, name, ENVIRONMENT) == "merged"
    parts = [tensors(study, part, at * BATCH) for part, at in zip(names, (2, 4, 6), strict=True)]
    merged = tensors(study, name, END)
    assert merged.keys() == parts[0].keys()
    for key, tensor in merged.items():
        by_hand = (parts[0][key].double() + parts[1][key].double() + parts[2][key].double()) / 3
        assert torch.equal(tensor, by_hand.float()) and tensor.dtype == torch.float32
        assert not any(torch.equal(tensor, part[key]) for part in parts), key
    done = states.verify_state(study.state(name))
    assert done is not None and (done.outcome, done.tokens, done.step) == ("trained", END, 6)


def test_the_mean_of_a_trunk_is_its_start_with_decayed_updates(tmp_path: Path) -> None:
    study, names = trunk(tmp_path)
    weights = decay_weights("1-sqrt", Fraction(1, 10), 2)
    name = declare(study, names, coefficients_of(weights))
    merge_state(study.folder, name, ENVIRONMENT)
    first, second, third = (tensors(study, part, at * BATCH) for part, at in zip(names, (2, 4, 6), strict=True))
    for key, tensor in tensors(study, name, END).items():
        a, b, c = (part[key].double() for part in (first, second, third))
        decayed = a + float(weights[0]) * (b - a) + float(weights[1]) * (c - b)
        torch.testing.assert_close(tensor.double(), decayed, rtol=1e-6, atol=1e-8)


def test_tied_weights_stay_tied_and_the_folder_opens(tmp_path: Path) -> None:
    study, names = trunk(tmp_path)
    name = declare(study, names[1:], [Fraction(1, 4), Fraction(3, 4)])
    merge_state(study.folder, name, ENVIRONMENT)
    model = load_model(study.state(name).checkpoint(END) / "model")
    ties = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    source = load_model(study.state(names[-1]).checkpoint(END) / "model")
    assert ties == (source.get_output_embeddings().weight is source.get_input_embeddings().weight)
    assert model.config.to_dict() == {**source.config.to_dict(), "_name_or_path": model.config.name_or_path}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 2**31))
def test_a_weighted_mean_is_that_of_exact_arithmetic_rounded_once(weights: list[int], seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    parts = [torch.randn(3, 4, generator=draw) for _ in weights]
    coefficients = [Fraction(weight, sum(weights)) for weight in weights]
    found = weighted_mean(parts, coefficients).float()
    for place in ((0, 0), (2, 3)):
        exact = sum(c * Fraction(float(part[place])) for c, part in zip(coefficients, parts, strict=True))
        assert abs(Fraction(float(found[place])) - exact) <= abs(exact) * Fraction(1, 2**24) + Fraction(1, 2**50)


def test_whole_numbers_are_kept_where_they_are_equal_and_have_no_mean_where_not() -> None:
    same = torch.tensor([1, 2])
    halves = [Fraction(1, 2)] * 2
    assert torch.equal(weighted_mean([same, same.clone()], halves), same)
    with pytest.raises(ValueError, match="no mean"):
        weighted_mean([same, torch.tensor([1, 3])], halves)


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("config.json", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "differ in rope_parameters"),
        ("config.json", {"num_attention_heads": 1}, "differ in num_attention_heads"),
        *((file, None, "differ in the tokenizer") for file in TOKENIZER_FILES),
    ],
)
def test_models_that_are_not_alike_are_refused_by_what_differs(
    file: str, change: dict[str, object] | None, said: str, tmp_path: Path
) -> None:
    study, names = trunk(tmp_path)
    final = study.state(names[-1]).checkpoint(END)
    path = final / "model" / file
    if change is None:
        path.write_text((path.read_text() if path.exists() else "") + " ")
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    _seal_again(study, names[-1])
    name = declare(study, names, [Fraction(1, 3)] * 3)
    with pytest.raises(UserError, match=said):
        merge_state(study.folder, name, ENVIRONMENT)
    assert states.read_done(study.state(name)) is None
    ended = attempts.read_exit(study.state(name), 0)
    assert ended is not None and ended["outcome"] == "failed"


def _seal_again(study: build.StudyFolder, name: str) -> None:
    """Mark a changed checkpoint as whole, as if it had been written so."""
    state = study.state(name)
    final = state.checkpoint(END)
    staged = final.with_name("staged.tmp")
    final.rename(staged)
    (staged / "DONE.json").unlink(missing_ok=True)
    done = states.read_done(state)
    assert done is not None
    marker = checkpoints.seal(staged, final, name, END, done.step)
    states.write_done(state, "trained", END, done.step, checkpoints.weights_hash(marker.files), END, {})


def test_a_part_that_is_not_whole_is_named(tmp_path: Path) -> None:
    study, names = trunk(tmp_path)
    name = declare(study, names, [Fraction(1, 3)] * 3)
    model = study.state(names[1]).checkpoint(4 * BATCH) / "model/model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"a merge needs weights that are not whole: .*They must be trained again"):
        merge_state(study.folder, name, ENVIRONMENT)


def test_a_merge_that_died_while_writing_is_made_again_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, names = trunk(tmp_path)
    name = declare(study, names, [Fraction(1, 3)] * 3)

    class Killed(BaseException):
        pass

    def die(*arguments: object, **named: object) -> None:
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(merging.checkpoints, "seal", die)
        with pytest.raises(Killed):
            merge_state(study.folder, name, ENVIRONMENT)
    state = study.state(name)
    assert states.read_done(state) is None and not state.checkpoint(END).exists()
    assert merge_state(study.folder, name, ENVIRONMENT) == "merged"
    first = states.verify_state(state)
    assert first is not None and state.attempt_numbers() == [0, 1]
    assert merge_state(study.folder, name, ENVIRONMENT) == "merged"
    assert state.attempt_numbers() == [0, 1], "one that is there is left alone"
    state.done.unlink()
    merge_state(study.folder, name, ENVIRONMENT)
    again = states.verify_state(state)
    assert again is not None and again.weights == first.weights
