"""What `ablate doctor` looks at: each function looks at one thing and changes nothing but a file that it removes."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from harness import track
from harness.store.atomic import readable_bytes
from harness.study.checks import on_gpu_alone

NEEDED = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "pydantic", "ruamel.yaml", "pyarrow")
EVALUATION = ("lm_eval", "scipy", "matplotlib", "jinja2")
INSTALL = "`pip install -e .` in the repository"
LOW_DISK_BYTES = 2e9
PROBE_SECONDS = 2.0
NETWORKED = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "fuse.sshfs", "9p")
LIGER = "`pip install 'midtraining-ablation-harness[liger]'`, or `launch.kernels: auto`"
TEX = "`apt-get install texlive-latex-recommended texlive-science`"


@dataclass(frozen=True)
class Found:
    """ok: whether it is there. sentence: what was found. get: how to get it where it is not."""

    ok: bool
    sentence: str
    get: str = ""


@dataclass(frozen=True)
class HubFile:
    """A repository of the hub. kind: `model` or `dataset`."""

    kind: str
    name: str
    revision: str | None = None


def python() -> Found:
    get = "install Python 3.11 or newer and make the environment with it"
    return Found(sys.version_info >= (3, 11), f"{sys.version.split()[0]} (3.11 or newer is needed)", get)


def package(name: str) -> Found:
    """Whether a package of the harness is installed; it is not imported."""
    try:
        return Found(True, version(name))
    except PackageNotFoundError:
        return Found(False, "not installed", INSTALL)


def gguf() -> Found:
    try:
        return Found(True, f"{version('gguf')}: .gguf files can be the base")
    except PackageNotFoundError:
        return Found(False, "not installed; for a .gguf file as the base", '`pip install "gguf"`')


def importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def suite_extras() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Module → what to install for it, and the suites that require it."""
    from ruamel.yaml import YAML

    from harness.evals.suites import SUITES, suite_names
    from harness.evals.task_files import SUFFIX

    users: dict[str, list[str]] = defaultdict(list)
    packages: dict[str, str] = {}
    for name in suite_names():
        suite = YAML(typ="safe", pure=True).load((SUITES / f"{name}{SUFFIX}").read_bytes())
        for module, needed in suite.get("requires", {}).items():
            users[module].append(name)
            packages[module] = str(needed)
    return {module: (packages[module], tuple(names)) for module, names in users.items()}


def extra(module: str, needed: str, suites: tuple[str, ...]) -> Found:
    there = importable(module)
    state = "installed" if there else "not installed"
    return Found(there, f"{state}; for the suite {', '.join(suites)}", f'`pip install "{needed}"`')


def device(asked: str, gpus: int) -> Found:
    """What torch can train on, against what a study asks for."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count:
        of = f", CUDA {torch.version.cuda}"
        ok = gpus <= count or asked == "cpu"
        sentence = f"cuda: {count} x {torch.cuda.get_device_name()}{of}{_driver()}"
        return Found(ok, sentence if ok else f"{sentence}; {gpus} are asked for", "lower `launch.gpus`")
    built = "torch is built for CPU only" if torch.version.cuda is None else f"no GPU for CUDA {torch.version.cuda}"
    sentence = f"cpu: {built}{_driver()}"
    if asked == "cuda" or gpus > 1:
        get = "a machine with that many GPUs and a torch built for its CUDA (pytorch.org), or `launch.device: cpu`"
        return Found(False, f"{sentence}; the study asks for {gpus} GPU{'s' * (gpus > 1)}", get)
    return Found(True, sentence)


def liger(parts: Sequence[str], device: str) -> Found:
    """Whether the kernels of Liger that `launch.kernels` asks for, by part, can run here on `launch.device`."""
    if not importable("liger_kernel"):
        return Found(False, "liger-kernel is not installed", LIGER)
    alone = on_gpu_alone(parts)
    if alone and not _gpu(device):
        return Found(False, f"Liger's {', '.join(alone)} needs a GPU, and there is none", "`launch.kernels: auto`")
    return Found(True, f"liger-kernel {version('liger-kernel')}")


def _gpu(device: str) -> bool:
    import torch

    return device != "cpu" and torch.cuda.is_available()


def _driver() -> str:
    """The driver's version as nvidia-smi says it, empty without one."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ", driver does not answer"
    lines = done.stdout.split()
    return f", driver {lines[0]}" if done.returncode == 0 and lines else ", driver does not answer"


def cores(jobs: int, threads: int) -> Found:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if jobs * threads <= count:
        return Found(True, f"{count}; the study asks for {jobs} x {threads}" if jobs * threads > 1 else str(count))
    sentence = f"{count}, fewer than {jobs} jobs of {threads} threads want; it works, slower"
    return Found(False, sentence, "lower `launch.jobs` or `launch.threads`")


def place(folder: Path, needed: float | None) -> Found:
    """Whether `folder`, or the nearest folder above it that is there, can be written and has room."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        return Found(False, f"{there} is no folder", "choose another place with `-o DIR`")
    try:
        with tempfile.TemporaryFile(dir=there):
            free = shutil.disk_usage(there).free
    except OSError as error:
        return Found(False, f"{folder} cannot be written: {error.strerror}", "choose another place with `-o DIR`")
    sentence = f"{folder}: {readable_bytes(free)} free, {_disk_kind(there)}"
    if needed:
        sentence += f"; checkpoints to be made take about {readable_bytes(needed)}"
    get = "free some room, choose another place with `-o DIR`, or keep fewer checkpoints (`keep`)"
    return Found(free > max(needed or 0.0, LOW_DISK_BYTES), sentence, get)


def token_store() -> Found:
    from harness.data.cache import VARIABLE, cache_root

    found = place(cache_root(), None)
    get = f"free some room, or name another place: `export {VARIABLE}=DIR`"
    return Found(found.ok, found.sentence, get)


def _disk_kind(folder: Path) -> str:
    """`local disk` or the kind of file system that is not one, by /proc/mounts."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return "kind of disk not known"
    for line in mounts:
        _, where, form, *_ = line.split()
        where = where.replace("\\040", " ")
        if folder.resolve().is_relative_to(where) and len(where) >= len(best):
            best, kind = where, form
    return f"{kind}, a network disk (slower)" if kind.startswith(NETWORKED) else "local disk"


def hub(wanted: tuple[HubFile, ...]) -> Found:
    """Whether the hub answers; what a study wants is enough when it lies in the cache."""
    from huggingface_hub import constants

    where = f"cache {constants.HF_HUB_CACHE}"
    absent = [file.name for file in wanted if not _cached(file)]
    if wanted and not absent:
        return Found(True, f"{', '.join(file.name for file in wanted)}: in the {where}")
    of = f"; {', '.join(absent)} not in the cache" if absent else ""
    if constants.HF_HUB_OFFLINE:
        return Found(False, f"HF_HUB_OFFLINE is set; {where}{of}", "`unset HF_HUB_OFFLINE` to download")
    if _answers(constants.ENDPOINT):
        return Found(True, f"{constants.ENDPOINT} answers; {where}")
    get = "connect, or copy the cache of a machine that has it (`export HF_HOME=DIR`)"
    return Found(False, f"{constants.ENDPOINT} does not answer; {where}{of}", get)


def _cached(file: HubFile) -> bool:
    """Whether some revision that fits is in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=file.name, repo_type=file.kind)
    reference = folder / "refs" / (file.revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else str(file.revision)
    snapshot = folder / "snapshots" / commit
    return snapshot.is_dir() and any(snapshot.iterdir())


def _answers(address: str) -> bool:
    """One request of at most two seconds; any answer at all is one."""
    import threading
    import urllib.error
    import urllib.request

    answered: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS).close()
            answered.append(True)
        except urllib.error.HTTPError:
            answered.append(True)
        except Exception:  # no route, no name, a certificate: all the same here
            answered.append(False)

    thread = threading.Thread(target=ask, daemon=True)  # a name that is looked up heeds no timeout
    thread.start()
    thread.join(PROBE_SECONDS)
    return bool(answered and answered[0])


def tracker(name: str, offline: bool | None = None) -> Found:
    """A tracker; never a key, only whether there is a login. offline: as `harness.track.check` takes it."""
    return Found(*track.check(name, offline))


def command(name: str) -> Found:
    where = shutil.which(name)
    return Found(
        where is not None, where or "not here; for runs on a Slurm cluster", "run on a login node of the cluster"
    )


def tex() -> Found:
    """pdflatex and the two packages of the report's table, through kpsewhich."""
    absent = [name for name in ("pdflatex", "kpsewhich") if shutil.which(name) is None]
    if not absent:
        absent = [name for name in ("booktabs.sty", "siunitx.sty") if not _has_style(name)]
    if absent:
        return Found(False, f"{', '.join(absent)} not found; to set the report's table", TEX)
    return Found(True, "pdflatex with booktabs and siunitx")


def _has_style(name: str) -> bool:
    try:
        done = subprocess.run(["kpsewhich", name], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
