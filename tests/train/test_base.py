"""What the base is, and the state that is made from it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.store import manifests, states
from harness.study.errors import UserError
from harness.study.treatment import Base
from harness.train import base as base_module
from harness.train.base import describe_base, prepare_base
from harness.train.checkpoint import OPTIMIZER
from harness.train.model import build_model, config_from_fields, load_model, save_model, shape_of
from tests.train import build
from tests.train.build import LLAMA, VOCABULARY, StudyFolder

TOKENIZER = {"identity": "t" * 64, "path": "nowhere", "vocab_size": VOCABULARY, "eos_token_id": 0}


def _declared(model: dict[str, Any], optimizer: str = "cold") -> Base:
    return Base(model, {"path": "unused"}, optimizer, None)  # type: ignore[arg-type]


def _saved(folder: Path, **changes: Any) -> Path:
    """A small model's folder."""
    tokenizer = folder.parent / "tokenizer-files"
    tokenizer.mkdir(parents=True, exist_ok=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    save_model(build.model(**changes), folder, tokenizer)
    return folder


def test_weights_from_scratch_depend_on_the_init_seed_alone() -> None:
    config = config_from_fields(build.config_fields())
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    first = build_model(config, 1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(456)
    again, other = build_model(config, 1).state_dict(), build_model(config, 2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_a_configuration_from_scratch_takes_vocabulary_and_end_of_text_from_the_tokenizer(tmp_path: Path) -> None:
    manifest = describe_base(_declared({"config": LLAMA}), tmp_path, TOKENIZER)
    assert manifest["kind"] == "config" and manifest["location"] is None
    assert manifest["vocab_size"] == VOCABULARY == manifest["config"]["vocab_size"]
    assert manifest["config"]["eos_token_id"] == 0 and manifest["config"]["attention_dropout"] == 0.0
    assert manifest["rope"] == {"rope_type": "default", "rope_theta": 10000.0}
    assert manifest["max_positions"] == 64 and (manifest["layers"], manifest["hidden"]) == (2, 16)
    assert json.loads(json.dumps(manifest)) == manifest


def test_a_model_from_scratch_may_be_like_another(tmp_path: Path) -> None:
    _saved(tmp_path / "other", rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    wider = {"config": {"like": "other", "num_hidden_layers": 3}}
    manifest = describe_base(_declared(wider), tmp_path, TOKENIZER)
    assert manifest["kind"] == "config" and manifest["layers"] == 3
    assert manifest["config"]["hidden_size"] == LLAMA["hidden_size"]
    assert manifest["rope"] == {"rope_type": "default", "rope_theta": 5e5}
    assert [Path(file["path"]).name for file in manifest["files"]] == ["config.json"], "its weights are not used"
    spelt_out = {name: value for name, value in manifest["config"].items() if value is not None}
    same = describe_base(_declared({"config": spelt_out}), tmp_path, TOKENIZER)
    assert same["identity"] == manifest["identity"]
    with pytest.raises(UserError, match=r"`base\.model\.config\.num_layer` is no field of llama"):
        describe_base(_declared({"config": {"like": "other", "num_layer": 3}}), tmp_path, TOKENIZER)
    with pytest.raises(UserError, match=r"`base.model.config.like: ./nowhere`: there is no"):
        describe_base(_declared({"config": {"like": "./nowhere"}}), tmp_path, TOKENIZER)


def test_the_identity_follows_the_configuration(tmp_path: Path) -> None:
    identities = [
        describe_base(_declared({"config": fields}), tmp_path, TOKENIZER)["identity"]
        for fields in (LLAMA, dict(reversed(LLAMA.items())), {**LLAMA, "initializer_range": 0.01})
    ]
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize("tied", [True, False])
def test_matmul_parameters_leave_out_the_look_up_and_count_the_head(tied: bool) -> None:
    shape = shape_of(config_from_fields(build.config_fields(tie_word_embeddings=tied)))
    attention = 16 * 16 + 2 * 16 * 8 + 16 * 16
    body = 2 * (attention + 3 * 16 * 32 + 2 * 16) + 16
    assert shape.total == body + 64 * 16 * (1 if tied else 2)
    assert shape.matmul == body + 64 * 16
    assert shape_of(config_from_fields(build.config_fields("gpt2"))).matmul % 16 == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 16}, "needs `model_type`"),
        ({"model_type": "lama"}, "did you mean `llama`"),
        ({**LLAMA, "hiden_size": 16}, "did you mean `hidden_size`"),
        ({**LLAMA, "num_attention_heads": 3, "hidden_size": 16}, "not a llama configuration"),
        ({"model_type": "gpt2", "rope_theta": 1e5}, "`base.model.config.rope_theta` is no field of gpt2"),
        ({**LLAMA, "vocab_size": 32}, "only 32"),
        ({"model_type": "t5"}, "a t5 model is not a causal language model"),
        ({**LLAMA, "model_type": "mixtral"}, "this mixtral model is a mixture of experts"),
    ],
)
def test_a_wrong_configuration_is_a_user_error(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        describe_base(_declared({"config": fields}), tmp_path, TOKENIZER)


def test_a_mixture_of_experts_is_described_where_it_is_only_evaluated(tmp_path: Path) -> None:
    declared = _declared({"config": {**LLAMA, "model_type": "mixtral", "vocab_size": TOKENIZER["vocab_size"]}})
    assert describe_base(declared, tmp_path, TOKENIZER, trained=False)["config"]["model_type"] == "mixtral"


def test_a_folder_is_named_by_its_files_and_they_are_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _saved(tmp_path / "model")
    declared = _declared({"path": "model"})
    manifest = describe_base(declared, tmp_path, TOKENIZER)
    assert manifest["kind"] == "folder" and manifest["location"] == str(tmp_path / "model")
    assert [Path(file["path"]).name for file in manifest["files"]] == ["config.json", "model.safetensors"]

    def fail(path: Path) -> str:
        raise AssertionError(f"{path} was read again")

    with monkeypatch.context() as patched:
        patched.setattr(base_module, "sha256_file", fail)
        assert describe_base(declared, tmp_path, TOKENIZER, manifest) == manifest
    weights = tmp_path / "model" / "model.safetensors"
    _saved(tmp_path / "model", seed=2)
    os.utime(weights, ns=(1, 1))
    assert describe_base(declared, tmp_path, TOKENIZER, manifest)["identity"] != manifest["identity"]


@pytest.mark.parametrize(
    ("path", "message"),
    [("./missing", "there is no"), ("empty", "cannot be loaded"), ("pickled", "no .safetensors weights")],
)
def test_a_model_that_is_not_there_is_a_user_error(path: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (_saved(tmp_path / "pickled") / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        describe_base(_declared({"path": path}), tmp_path, TOKENIZER)


@pytest.mark.parametrize("name", ["org/model", "small.gguf"])
def test_a_revision_is_of_the_hub_and_never_of_what_lies_here(name: str, tmp_path: Path) -> None:
    _saved(tmp_path / "org" / "model")
    (tmp_path / "small.gguf").touch()
    with pytest.raises(UserError, match=rf"`base\.revision: abc` is of a model on the hub, and `base\.model: {name}`"):
        describe_base(_declared({"path": name, "revision": "abc"}), tmp_path, TOKENIZER)
    with pytest.raises(UserError, match=rf"and `base\.model\.config\.like: {name}` is found here"):
        describe_base(_declared({"config": {"like": name}, "revision": "abc"}), tmp_path, TOKENIZER)


def test_a_carried_optimizer_must_be_there(tmp_path: Path) -> None:
    declared = _declared({"path": "run/model"}, "carried")
    _saved(tmp_path / "run" / "model")
    with pytest.raises(
        UserError, match=r"there is no optimizer\.safetensors in .*run/model or in .*run\. .*`base\.optimizer: cold`"
    ):
        describe_base(declared, tmp_path, TOKENIZER)
    save_file({"x": torch.zeros(1)}, tmp_path / "run" / OPTIMIZER)
    assert describe_base(declared, tmp_path, TOKENIZER)["optimizer"] == str(tmp_path / "run" / OPTIMIZER)
    with pytest.raises(UserError, match="from scratch has no optimizer state"):
        describe_base(_declared({"config": LLAMA}, "carried"), tmp_path, TOKENIZER)


def test_a_base_carries_its_optimizer_state_only_when_asked(tmp_path: Path) -> None:
    one = StudyFolder(tmp_path / "one")
    batch = build.BATCH
    (name,) = one.declare([build.piece(0, 4 * batch)], [4 * batch])
    one.train(name)
    checkpoint = one.state(name).checkpoint(4 * batch)
    steps = {}
    for optimizer in ("carried", "cold"):
        base = _declared({"path": str(checkpoint / "model")}, optimizer)
        study = StudyFolder(tmp_path / optimizer, base=base)
        prepared = study.state(study.base).checkpoint(0)
        assert (prepared / OPTIMIZER).exists() is (optimizer == "carried")
        (more,) = study.declare([build.piece(0, 2 * batch)], [2 * batch])
        study.train(more)
        state = load_file(study.state(more).checkpoint(2 * batch) / OPTIMIZER)
        steps[optimizer] = state["step.model.norm.weight"].item()
    assert steps == {"carried": 6.0, "cold": 2.0}


def test_the_base_state_is_a_checkpoint_like_any_other_and_prepared_once(tmp_path: Path) -> None:
    study = StudyFolder(tmp_path)
    state = study.state(study.base)
    done = states.verify_state(state)
    assert done is not None and (done.tokens, done.step, done.outcome) == (0, 0, "trained")
    before = (state.checkpoint(0) / "model" / "model.safetensors").stat().st_mtime_ns
    assert prepare_base(study.folder, study.base) == done.weights
    assert (state.checkpoint(0) / "model" / "model.safetensors").stat().st_mtime_ns == before
    (state.checkpoint(0) / "model" / "model.safetensors").write_bytes(b"torn")
    assert prepare_base(study.folder, study.base) == done.weights
    expected = build_model(config_from_fields(study.manifest["config"]), 1).state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(state.checkpoint(0) / "model").state_dict()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)


def test_a_base_whose_file_changed_after_it_was_resolved_is_refused(tmp_path: Path) -> None:
    _saved(tmp_path / "model")
    study = StudyFolder(tmp_path / "study", base=_declared({"path": str(tmp_path / "model")}))
    study.state(study.base).done.unlink()
    _saved(tmp_path / "model", seed=2)
    with pytest.raises(UserError, match="changed since the base was resolved"):
        prepare_base(study.folder, study.base)


def test_a_bf16_folder_is_loaded_as_fp32_with_memory_of_its_own(tmp_path: Path) -> None:
    model = build.model().bfloat16()
    model.save_pretrained(tmp_path / "half")
    loaded = load_model(tmp_path / "half")
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.float32 and parameter.data_ptr() % 64 == 0
        assert torch.equal(parameter, model.get_parameter(name).float())
    assert loaded.training and loaded.config._attn_implementation == "sdpa"
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_a_base_whose_configuration_has_fields_that_its_family_lacks_is_trained(tmp_path: Path) -> None:
    """As SmolLM2's `is_llama_config`: a published folder is no list of the user's own fields."""
    folder = _saved(tmp_path / "model")
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "is_llama_config": True}))
    study = StudyFolder(tmp_path / "study", base=_declared({"path": str(folder)}))
    (name,) = study.declare([build.piece(0, 2 * build.BATCH)], [2 * build.BATCH])
    assert study.train(name).kind == "trained"


@pytest.mark.parametrize("fields", [{"hidden_size": 0}, {"num_attention_heads": -4}, {"num_key_value_heads": 0}])
def test_sizes_that_make_no_model_are_a_mistake_of_the_user(tmp_path: Path, fields: dict[str, int]) -> None:
    with pytest.raises(UserError, match="llama"):
        describe_base(_declared({"config": {**LLAMA, **fields}}), tmp_path, TOKENIZER)


def test_a_folder_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    folder = _saved(tmp_path / "model")
    tensors = {name: value.clone() for name, value in build.model().state_dict().items() if "lm_head" not in name}
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"missing model\.layers\.1\.mlp\.up_proj\.weight"):
        load_model(folder)


def write_gguf(path: Path, model: Any, words: Mapping[str, int] | None = None, merges: Sequence[str] = ()) -> None:
    """A llama as llama.cpp's converter writes it: its names, and query and key rows in interleaved rotary order.

    words: a tokenizer's token → id, with its merges; the token with id 0 ends a text.
    """
    config, head = model.config, model.config.head_dim
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("Small")  # as every published file has; transformers puts it into the configuration
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    names_of = {number: word for word, number in (words or {}).items()}
    writer.add_token_list([names_of.get(n, f"t{n}") for n in range(config.vocab_size)])
    if merges:
        writer.add_token_merges(list(merges))
    writer.add_token_types([1] * config.vocab_size)
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        values = tensor.numpy().astype(np.float32)
        for kind, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if kind in name:
                values = values.reshape(heads, 2, head // 2, -1).swapaxes(1, 2).reshape(values.shape)
        target = names.get_name(name, try_suffixes=(".weight",))
        assert target is not None
        writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_a_base_with_the_weights_in_it(tmp_path: Path) -> None:
    model = build.model(tie_word_embeddings=False, attention_dropout=0.0)
    write_gguf(tmp_path / "small.gguf", model)
    study = StudyFolder(tmp_path / "study", base=_declared({"path": str(tmp_path / "small.gguf")}))
    manifest = manifests.read_base(study.folder)
    assert manifest is not None and manifest["kind"] == "gguf" and manifest["location"].endswith("small.gguf")
    assert (manifest["layers"], manifest["hidden"], manifest["vocab_size"]) == (2, 16, VOCABULARY)
    prepared = AutoModelForCausalLM.from_pretrained(study.state(study.base).checkpoint(0) / "model")
    ids = torch.arange(1, 20).unsqueeze(0)
    torch.testing.assert_close(prepared(input_ids=ids).logits, model(input_ids=ids).logits, rtol=1e-5, atol=1e-6)
    (name,) = study.declare([build.piece(0, 2 * build.BATCH)], [2 * build.BATCH])
    assert study.train(name).kind == "trained"
