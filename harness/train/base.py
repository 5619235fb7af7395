"""The base: what it is, found out when a study is resolved, and the state before token 0, made from it once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel

from harness.plan.canonical import digest
from harness.store import checkpoints, manifests, states
from harness.store.atomic import sha256_file, staging_folder, writing
from harness.store.checkpoints import weights_hash
from harness.store.layout import Folder
from harness.store.markers import Damaged, checksum_files
from harness.store.places import expanded
from harness.study.bases import names_a_path
from harness.study.errors import UserError
from harness.study.treatment import Base
from harness.train.checkpoint import OPTIMIZER
from harness.train.model import (
    build_model,
    check_dense,
    config_from_fields,
    config_like,
    load_config,
    load_model,
    save_model,
    shape_of,
)
from harness.train.rope import rope_parameters

# Part of a from-scratch identity: how weights are drawn from the seed. A change of the rule makes another base.
INITIALISATION = 1


def describe_base(
    base: Base,
    study_folder: Path,
    tokenizer: Mapping[str, Any],
    known: Mapping[str, Any] | None = None,
    where: str = "base.model",
    trained: bool = True,
) -> dict[str, Any]:
    """The base's manifest (`manifests/base.json`), less the schema number; weights are hashed, not loaded.

    study_folder: where relative paths start. tokenizer: the manifest's entry, already resolved. known: an earlier
    manifest; files whose size and time it has are not hashed again. where: what names the model, for messages.
    trained: whether it is to be trained, and not evaluated alone. A base whose optimizer is `carried` serves arms that
    start cold, too (`manifests.base_identity`). Raises UserError for a model that cannot be found, read or trained, a
    tokenizer with more tokens than the model, and a carried optimizer that is not there.
    """
    location = None if base.from_scratch else locate(base.model, study_folder, where)
    config = _scratch_config(base, tokenizer, study_folder) if location is None else load_config(location)
    if tokenizer["vocab_size"] > config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer['vocab_size']:,} tokens, the model's `vocab_size` is only "
            f"{config.vocab_size:,}; every token needs an embedding."
        )
    shape = shape_of(config)
    if trained:
        check_dense(config, shape)
    files = _stamped(_like_files(base, study_folder) if location is None else _model_files(location, where), known)
    optimizer = _carried_optimizer(location) if base.optimizer == "carried" else None
    if optimizer is not None:
        files += _stamped([optimizer], known)
    return {
        "identity": _identity(config, location, files),
        "kind": _kind(base.model, study_folder),
        "location": None if location is None else str(location),
        "config": _plain(config),
        "tokenizer": dict(tokenizer),
        "optimizer": None if optimizer is None else str(optimizer),
        "vocab_size": config.vocab_size,
        "max_positions": getattr(config, "max_position_embeddings", None),
        "rope": rope_parameters(config),
        "parameters": {"total": shape.total, "matmul": shape.matmul},
        "layers": shape.layers,
        "hidden": shape.hidden,
        "declared": {"model": dict(base.model), "optimizer": base.optimizer},
        "files": files,
    }


def prepare_base(folder: Folder, state_id: str) -> str:
    """Write the state before token 0, `checkpoints/0` of state `state_id`, unless it is there.

    Returns its weights' hash. The state's segment.json names the init seed and whether the optimizer's state goes
    along, the base's manifest the rest. Raises UserError when the base is no longer what the manifest says.
    """
    state = folder.state(state_id)
    try:
        done = states.verify_state(state)
    except Damaged:
        done = None
    if done is not None:
        assert done.weights is not None, "a base cannot diverge"
        return done.weights
    manifest = manifests.read_base(folder)
    if manifest is None:
        raise UserError(f"{folder.base_manifest} is missing or damaged; `ablate run` resolves the base again.")
    segment = states.read_segment(state)
    model = _base_model(manifest, segment["base"])
    with writing(state.checkpoint(0), sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())):
        staged = staging_folder(state.checkpoint(0))
        try:
            save_model(model, staged / "model", Path(manifest["tokenizer"]["path"]))
            if segment["base"]["optimizer"] == "carried":
                shutil.copyfile(manifest["optimizer"], staged / OPTIMIZER)
            marker = checkpoints.seal(staged, state.checkpoint(0), state_id, tokens=0, step=0)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
    weights = weights_hash(marker.files)
    states.write_done(state, "trained", tokens=0, step=0, weights=weights, checkpoint=0, summary={})
    return weights


def write_trained(manifest: Mapping[str, Any], staged: Path) -> str:
    """Write the trained model that a manifest describes to `staged/model` as a base is written: all weights in fp32,
    and the tokenizer. Returns its weights' hash. Raises UserError when it cannot be loaded whole."""
    model = load_model(Path(manifest["location"]))
    with writing(staged, sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())):
        save_model(model, staged / "model", Path(manifest["tokenizer"]["path"]))
    return weights_hash(checksum_files(staged))


def _base_model(manifest: Mapping[str, Any], base: Mapping[str, Any]) -> PreTrainedModel:
    resolved = manifests.base_identity(manifest, base["optimizer"])
    if resolved is None:
        raise UserError(
            "the base of this state carries its optimizer's state, and the manifest names none; plan again."
        )
    if base["weights"] != resolved:
        raise UserError(
            f"the base of this state has weights {base['weights'][:12]}, the manifest has {resolved[:12]}; plan again."
        )
    if manifest["kind"] == "config":
        return build_model(config_from_fields(manifest["config"]), base["init_seed"])
    for file in manifest["files"]:
        if sha256_file(Path(file["path"])) != file["sha256"]:
            raise UserError(f"{file['path']} has changed since the base was resolved; plan again.")
    return load_model(Path(manifest["location"]))


def _scratch_config(base: Base, tokenizer: Mapping[str, Any], study_folder: Path) -> PretrainedConfig:
    """The declared configuration; vocabulary and special tokens follow the tokenizer where nothing is declared.

    With `like`, everything else is the configuration of the model that it names.
    """
    eos = tokenizer["eos_token_id"]
    follows = {"vocab_size": tokenizer["vocab_size"], "bos_token_id": eos, "eos_token_id": eos, "pad_token_id": None}
    fields = {name: value for name, value in base.model["config"].items() if name != "like"}
    like = _like(base, study_folder)
    return config_from_fields(fields, follows) if like is None else config_like(load_config(like), fields, follows)


def _like(base: Base, study_folder: Path) -> Path | None:
    """Where the model is whose configuration is taken."""
    name = base.model["config"].get("like")
    if name is None:
        return None
    return locate({"path": name, "revision": base.model.get("revision")}, study_folder, "base.model.config.like")


def _like_files(base: Base, study_folder: Path) -> list[Path]:
    like = _like(base, study_folder)
    return [] if like is None else [like if like.is_file() else like / "config.json"]


def locate(model: Mapping[str, Any], study_folder: Path, where: str) -> Path:
    """The folder or `.gguf` file of a declared model; one that is named by its id on the hub is fetched first.

    where: what names the model. Raises UserError when it is not to be had.
    """
    name = str(model["path"])
    here = study_folder / expanded(name)
    revision = model.get("revision")
    if here.exists():
        if revision is not None:
            raise UserError(
                f"`base.revision: {revision}` is of a model on the hub, and `{where}: {name}` is found here, at "
                f"{here}. Expected no revision; or, where the hub's model is meant, another place for what is here."
            )
        return here.resolve()
    if names_a_path(name):
        raise UserError(f"`{where}: {name}`: there is no {here}.")
    return _fetch(name, revision, where)


def _fetch(name: str, revision: str | None, where: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(name, revision=revision, allow_patterns=["*.safetensors", "*.json"])
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"`{where}: {name}` is no folder here and cannot be fetched from the hub: {reason}") from None
    return Path(found)


def _model_files(location: Path, where: str) -> list[Path]:
    """Configuration and weights: what decides the model."""
    if location.is_file():
        return [location]
    weights = sorted(location.glob("*.safetensors"))
    weights = [path for path in weights if path.name != OPTIMIZER]
    if not weights:
        raise UserError(
            f"`{where}`: {location} has no .safetensors weights. Pickled weights are not loaded; convert them first."
        )
    return [location / "config.json", *weights]


def _stamped(paths: list[Path], known: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Size, time and checksum of each file, the checksum taken from `known` while size and time are the same."""
    before = {file["path"]: file for file in (known or {}).get("files", [])}
    stamps = []
    for path in paths:
        status = path.stat()
        times = {"mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
        stamp = {"path": str(path), "size": status.st_size, **times}
        earlier = before.get(str(path), {})
        same = all(earlier.get(key) == value for key, value in stamp.items())
        stamps.append({**stamp, "sha256": earlier["sha256"] if same else sha256_file(path)})
    return stamps


def _identity(config: PretrainedConfig, location: Path | None, files: list[dict[str, Any]]) -> str:
    """From scratch: the configuration and the rule of initialisation. Else the content of the files, by name."""
    if location is None:
        return digest({"initialisation": INITIALISATION, "config": _of_the_architecture(config)})
    return manifests.files_identity(files)


def _kind(model: Mapping[str, Any], study_folder: Path) -> str:
    if "config" in model:
        return "config"
    name = str(model["path"])
    if name.endswith(".gguf"):
        return "gguf"
    return "folder" if (study_folder / expanded(name)).exists() else "hub"


def _plain(config: PretrainedConfig) -> dict[str, Any]:
    """The whole configuration as JSON types, without what names the library that wrote it."""
    fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {name: value for name, value in fields.items() if name not in ("transformers_version", "_name_or_path")}


def _of_the_architecture(config: PretrainedConfig) -> dict[str, Any]:
    """What decides a model from scratch: the family's own fields, and general ones that it does not leave alone."""
    general = _plain(PretrainedConfig())
    return {name: value for name, value in _plain(config).items() if name not in general or value != general[name]}


def _carried_optimizer(location: Path | None) -> Path:
    if location is None:
        raise UserError("`base.optimizer: carried` needs a trained base; a model from scratch has no optimizer state.")
    folder = location if location.is_dir() else location.parent
    for candidate in (folder / OPTIMIZER, folder.parent / OPTIMIZER):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"`base.optimizer: carried` (of the study, or of one of its arms): there is no {OPTIMIZER} in {folder} or in "
        f"{folder.parent}. That is the file in which this harness leaves the optimizer's state beside the `model` "
        "folder of a checkpoint; other trainers' files are not read. Without it, expected `base.optimizer: cold`: the "
        "optimizer begins empty."
    )
