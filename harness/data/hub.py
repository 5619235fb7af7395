"""Text from data sets on the Hugging Face hub, pinned to a commit: the files of one configuration and split.

Which files those are is what the data set's card says (`configs`, `data_files`); without a card, the files under a
folder of the configuration's name whose path names the split. Files are fetched once, into the hub's own cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.data.files import SUFFIXES
from harness.study.checks import COMMIT
from harness.study.errors import UserError, nearest

DEFAULT_SPLIT = "train"
DEFAULT_CONFIGURATION = "default"
# Data in forms that are not read here: beside files that are, they would be missing without a word.
_NOT_READ = (".gz", ".bz2", ".xz", ".zip", ".tar", ".csv", ".tsv", ".arrow")


def fetch(declared: Mapping[str, Any], source: str) -> list[Path]:
    """The files of a declared source, in the order of their paths, fetched where they are not in the cache yet.

    declared: `hf`, `revision`, `split` and, where the data set has several configurations, `name`. Raises UserError for
    a revision that is no commit, a configuration or split that is not there, and a hub that cannot be reached.
    """
    revision = declared["revision"]
    if not COMMIT.fullmatch(revision):
        raise UserError(
            f"source `{source}`: `revision: {revision}` is no commit; expected its 40 hexadecimal digits, which the "
            "data set's page shows under its files (a branch moves, and a study could not be repeated)."
        )
    names = _listed(declared["hf"], revision, source)
    chosen = choose(names, _card(declared["hf"], revision, names, source), declared, source)
    return sorted(_snapshot(declared["hf"], revision, chosen, source) / name for name in chosen)


def choose(names: Sequence[str], card: Mapping[str, Any], declared: Mapping[str, Any], source: str) -> list[str]:
    """The files, of `names`, of the declared configuration and split. card: the front matter of the README. Pure."""
    usable = [name for name in names if name.endswith((*SUFFIXES, *_NOT_READ))]
    configurations = {
        str(entry["config_name"]): entry
        for entry in card.get("configs") or ()
        if isinstance(entry, Mapping) and "config_name" in entry
    }
    wanted, split = declared.get("name"), declared["split"]
    if configurations:
        name = wanted or (DEFAULT_CONFIGURATION if DEFAULT_CONFIGURATION in configurations else _only(configurations))
        if name not in configurations:
            unknown = f"has no configuration `{wanted}`; {nearest(str(wanted), configurations)}"
            said = unknown if wanted else _several(configurations)
            raise UserError(f"source `{source}`: {declared['hf']} {said}")
        patterns = _patterns(configurations[name], split)
        if not patterns:
            raise UserError(f"source `{source}`: `{name}` of {declared['hf']} has no split `{split}`.")
        chosen = [one for one in usable if any(_matches(one, pattern) for pattern in patterns)]
    else:
        folder = [one for one in usable if wanted is None or one.startswith(f"{wanted}/")]
        named = [one for one in folder if split in re.split(r"[/._-]", one)]
        chosen = named or [one for one in folder if split == DEFAULT_SPLIT]
    left_out = [one for one in chosen if not one.endswith(SUFFIXES)]
    if left_out and len(left_out) < len(chosen):
        raise UserError(
            f"source `{source}`: {len(left_out)} of the {len(chosen)} files of {declared['hf']} that are asked for, "
            f"such as {left_out[0]}, are none of {', '.join(SUFFIXES)}; fetch them, convert them and use `files`."
        )
    if left_out or not chosen:
        what = f"`{wanted}`, split `{split}`" if wanted else f"split `{split}`"
        raise UserError(
            f"source `{source}`: {declared['hf']} has no file of {what} among {', '.join(SUFFIXES)}; fetch it, "
            "convert it and use `files`."
        )
    return chosen


def _only(configurations: Mapping[str, Any]) -> str:
    return next(iter(configurations)) if len(configurations) == 1 else ""


def _several(configurations: Mapping[str, Any]) -> str:
    return f"has several configurations; expected `name`, one of {', '.join(list(configurations)[:8])}"


def _patterns(entry: Mapping[str, Any], split: str) -> list[str]:
    """The globs of one split of a configuration, in any of the forms that a card may have."""
    files = entry.get("data_files")
    if files is None:
        folder = str(entry.get("data_dir", "")).strip("/")
        return [f"{folder}/**" if folder else "**"] if split == DEFAULT_SPLIT else []
    if isinstance(files, str):
        files = [files]
    plain = [item for item in files if isinstance(item, str)]
    of_split = [item["path"] for item in files if isinstance(item, Mapping) and item.get("split") == split]
    found = (plain if split == DEFAULT_SPLIT else []) + [
        path for paths in of_split for path in ([paths] if isinstance(paths, str) else paths)
    ]
    folder = str(entry.get("data_dir", "")).strip("/")
    return [f"{folder}/{path}" if folder else path for path in found]


def _matches(name: str, pattern: str) -> bool:
    """Globs of the hub: `*` stays inside a folder, `**` does not."""
    parts = re.split(r"(\*\*/?|\*|\?)", pattern.removeprefix("./"))
    rule = {"**": ".*", "**/": "(?:.*/)?", "*": "[^/]*", "?": "[^/]"}
    return re.fullmatch("".join(rule.get(part, re.escape(part)) for part in parts), name) is not None


def _listed(repository: str, revision: str, source: str) -> list[str]:
    from huggingface_hub import HfApi

    return _asked(
        lambda: HfApi().list_repo_files(repository, repo_type="dataset", revision=revision), repository, source
    )


def _card(repository: str, revision: str, names: Iterable[str], source: str) -> Mapping[str, Any]:
    if "README.md" not in names:
        return {}
    from huggingface_hub import hf_hub_download
    from huggingface_hub.repocard import metadata_load

    def load() -> Any:
        return metadata_load(hf_hub_download(repository, "README.md", repo_type="dataset", revision=revision))

    found = _asked(load, repository, source)
    return found if isinstance(found, Mapping) else {}


def _snapshot(repository: str, revision: str, chosen: Sequence[str], source: str) -> Path:
    from huggingface_hub import snapshot_download

    literal = [re.sub(r"([*?\[])", r"[\1]", name) for name in chosen]

    def load() -> str:
        return snapshot_download(repository, repo_type="dataset", revision=revision, allow_patterns=literal)

    return Path(_asked(load, repository, source))


def _asked(ask: Any, repository: str, source: str) -> Any:
    """What the hub answers; a UserError with what to do where it does not."""
    try:
        return ask()
    except Exception as error:
        if not _is_the_hub_s(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"source `{source}`: {repository} cannot be fetched from the hub: {reason.rstrip('.')}. Where there is no "
            "network, fetch its files elsewhere and name them in `files`."
        ) from None


def _is_the_hub_s(error: Exception) -> bool:
    """Whether the hub or the way to it failed. Its client raises errors of its HTTP library, whichever that is."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    known = isinstance(error, HfHubHTTPError | HFValidationError | OSError | ValueError)
    return known or type(error).__module__.startswith(("httpx", "requests"))
