"""Causal language models of transformers, always with fp32 weights, SDPA attention and no dropout.

A model is built from a configuration (weights drawn from the init seed), or loaded from a folder or a `.gguf` file.
Whatever it came from, its tensors lie in memory of their own: a mapped file has another alignment, which may choose
another kernel with other rounding, and a resumed run would differ from an uncut one.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.utils import logging

from harness.study.errors import UserError, nearest

# Files that `save_model` writes; everything else in a model folder is the tokenizer's and is copied as it is.
_OWN_SUFFIXES = {".safetensors"}
_OWN_NAMES = {"config.json", "generation_config.json", "model.safetensors.index.json"}


def config_from_fields(fields: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> PretrainedConfig:
    """A configuration from the study's `base.model.config`. Unknown fields and model types raise UserError.

    defaults: fields that stand behind `fields` where the family has them.
    """
    given = dict(fields)
    kind = given.pop("model_type", None)
    if kind is None:
        raise UserError("`base.model.config` needs `model_type` (such as llama, qwen3, gpt_neox).")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"`base.model.config.model_type: {kind}` is unknown; {nearest(kind, CONFIG_MAPPING)}")
    plain = trainable(AutoConfig.for_model(kind))
    # transformers takes any keyword and forgets it; a misspelt field must not pass for a setting.
    known = set(plain.to_dict()) | set(plain.attribute_map)
    if "rope_parameters" in known:
        known |= {"rope_theta"}
    for name in given:
        if name not in known:
            raise UserError(f"`base.model.config.{name}` is no field of {kind}; {nearest(name, known)}")
    behind = {name: value for name, value in (defaults or {}).items() if name in known}
    try:
        return trainable(AutoConfig.for_model(kind, **{**behind, **given}))
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise UserError(f"`base.model.config` is not a {kind} configuration: {_said(error)}") from None


def config_of_base(fields: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of a resolved base, as its manifest keeps it.

    A model folder, or the name inside a `.gguf` file, may bring fields that its family does not have. transformers
    keeps them and uses none, so nothing is refused here.
    """
    return trainable(AutoConfig.for_model(**fields))


def config_like(model: PretrainedConfig, fields: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> PretrainedConfig:
    """The configuration of `model` with `fields` changed. tokenizer: vocabulary and special tokens, which follow it.

    Raises UserError for fields that the family does not have.
    """
    plain = set(AutoConfig.for_model(model.model_type).to_dict()) - {"transformers_version", "_name_or_path"}
    kept = {name: value for name, value in model.to_dict().items() if name in plain}
    if "rope_theta" in fields and isinstance(kept.get("rope_parameters"), Mapping):
        kept["rope_parameters"] = {**kept["rope_parameters"], "rope_theta": fields["rope_theta"]}
    changed = {name: value for name, value in fields.items() if name != "rope_theta"}
    return config_from_fields({**kept, **tokenizer, **changed})


def trainable(config: PretrainedConfig) -> PretrainedConfig:
    """`config` with dropout 0 and fp32 weights, changed in place. UserError when its models predict no next token."""
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise UserError(
            f"a {config.model_type} model is not a causal language model; this harness trains no other kind."
        )
    for name, value in config.to_dict().items():
        if ("dropout" in name or name.endswith("pdrop") or name == "layerdrop") and isinstance(value, float | int):
            setattr(config, name, 0.0)
    config.dtype = torch.float32
    return config


def load_config(folder: Path) -> PretrainedConfig:
    """The configuration in a model folder or a `.gguf` file. Raises UserError when it is not one transformers knows."""
    return trainable(_or_user_error(folder, lambda: AutoConfig.from_pretrained(**_source(folder))))


def build_model(config: PretrainedConfig, init_seed: int) -> PreTrainedModel:
    """A model from scratch: its weights depend on the configuration and `init_seed` alone.

    Global random state is left as it was. Drawn on the CPU, whatever the device of training, so that equal seeds mean
    equal weights everywhere.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(init_seed)
        return _built(config, attn_implementation="sdpa").train()


def _built(config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """The module tree of a configuration, whose numbers are the user's: whatever it cannot be built from is a mistake
    of theirs. Raises UserError."""
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    except Exception as error:
        raise UserError(
            f"`base.model.config` makes no {config.model_type} model: {_said(error)}; expected sizes above 0 that fit "
            "each other"
        ) from None
    return model


def load_model(folder: Path, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """The model in a folder of safetensors or a `.gguf` file, in fp32 on the CPU; `config` replaces its configuration.

    Raises UserError when the folder holds no causal language model, lacks weights or has others.
    """
    options = {"dtype": torch.float32, "attn_implementation": "sdpa", "output_loading_info": True}
    if config is not None:
        options["config"] = config
    if folder.suffix != ".gguf":
        options["use_safetensors"] = True

    with _quiet():
        model, info = _or_user_error(folder, lambda: AutoModelForCausalLM.from_pretrained(**_source(folder), **options))
    missing = sorted(info["missing_keys"])
    if missing or info.get("mismatched_keys"):
        raise UserError(
            f"{folder} does not hold all weights of its model: missing {', '.join(missing[:3]) or 'none'}, "
            f"of another shape {len(info.get('mismatched_keys', []))}."
        )
    if folder.suffix == ".gguf":
        return _dequantized(model)
    trainable(model.config)
    own_memory(model)
    return model.train()


def _dequantized(model: PreTrainedModel) -> PreTrainedModel:
    """A plain model with the weights of a `.gguf` file; the loaded one counts as quantized and cannot be saved."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    plain = build_model(trainable(config), init_seed=0)
    plain.load_state_dict(model.state_dict())
    return plain


def own_memory(model: nn.Module) -> None:
    """Give every parameter and buffer fresh memory; tied ones stay tied."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    for buffer in model.buffers():
        buffer.data = buffer.data.clone()


def save_model(
    model: PreTrainedModel, folder: Path, tokenizer: Path, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write `model` as a Hugging Face folder of fp32 safetensors, with the tokenizer files of folder `tokenizer`.

    weights: the model's state, where it does not hold it whole itself.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet():
        model.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
    _copy_tokenizer(tokenizer, folder)


def save_settings(model: PreTrainedModel, folder: Path, tokenizer: Path) -> None:
    """Write what `save_model` writes, but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    with _quiet():
        model.config.save_pretrained(folder)
        if model.can_generate() and model.generation_config is not None:
            model.generation_config.save_pretrained(folder)
    _copy_tokenizer(tokenizer, folder)


def _copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    for path in sorted(tokenizer.iterdir()):
        if path.is_file() and path.suffix not in _OWN_SUFFIXES and path.name not in _OWN_NAMES:
            shutil.copyfile(path, folder / path.name)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. total: all parameters. matmul: less embedding look-ups, with the output head, tied or not.
    experts: whether it is a mixture of experts."""

    total: int
    matmul: int
    layers: int
    hidden: int
    experts: bool


def shape_of(config: PretrainedConfig) -> Shape:
    """Sizes counted on the module tree that `config` makes, without memory for weights."""
    with torch.device("meta"):
        model = _built(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    embedded = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    head = model.get_output_embeddings()
    tied = head is not None and id(head.weight) in embedded
    matmul = total - sum(embedded.values()) + (head.weight.numel() if tied else 0)
    text = config.get_text_config()
    experts = any(
        "experts" in type(m).__name__.lower() or name.endswith("experts") for name, m in model.named_modules()
    )
    return Shape(total, matmul, int(text.num_hidden_layers), int(text.hidden_size), experts)


def check_dense(config: PretrainedConfig, shape: Shape) -> None:
    """Raise UserError for a mixture of experts. What is trained here is the loss of the labels alone: none balances a
    router, Muon takes matrices one by one and not stacked, and costs count every parameter for every token."""
    if shape.experts:
        raise UserError(
            f"this {config.model_type} model is a mixture of experts, which is not supported yet: its router would be "
            "trained without the loss that balances it, and its FLOPs would be counted as if every token used every "
            "expert. Expected a dense model. (`ablate eval --model` takes it as a reference.)"
        )


def _source(location: Path) -> dict[str, Any]:
    """How transformers is told of a folder or a `.gguf` file. Never a name that it could look up elsewhere."""
    if location.suffix == ".gguf":
        return {
            "pretrained_model_name_or_path": str(location.parent),
            "gguf_file": location.name,
            "local_files_only": True,
        }
    return {
        "pretrained_model_name_or_path": str(location),
        "local_files_only": True,
        "trust_remote_code": False,
    }


def _or_user_error(location: Path, load: Any) -> Any:
    if not location.exists():
        raise UserError(f"`base.model`: {location} does not exist.")
    try:
        return load()
    except ImportError as error:
        extra = " Install it with `pip install 'midtraining-ablation-harness[gguf]'`." if "gguf" in str(error) else ""
        raise UserError(f"{location} cannot be loaded: {_said(error)}{extra}") from None
    except (OSError, ValueError, KeyError, RuntimeError, StrictDataclassError) as error:
        raise UserError(f"{location} cannot be loaded as a causal language model: {_said(error)}") from None


def _said(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bars and notices, which would tear the table of a running study."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
