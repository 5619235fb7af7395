"""A results folder that is read-only, shared, full, moved or copied, and clocks that are set: nothing is lost."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import cli
from harness.launch import verify
from harness.store import atomic, metrics, processes
from harness.store.layout import Folder
from tests.proofs.ablate import command, disagreements, environment, events, final_weights, updates
from tests.proofs.small import SMALL, Finished, write_small

GROUP = 23456
Mounted = Callable[[str], Path]


def bring(study: Path, folder: Path, *more: str) -> int:
    return cli.call(["run", str(study), "-o", str(folder), "--executor", "debug", *more])


@pytest.fixture
def copied(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished folder, its study beside it, with the token store of the original."""
    monkeypatch.setenv("ABLATE_CACHE", str(finished.root / "cache"))
    shutil.copytree(finished.root / "out", tmp_path / "out")
    write_small(tmp_path)
    return tmp_path


@pytest.fixture
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """Mounts a file system in memory with options such as `size=1m`."""
    places: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path_factory.mktemp("mount")
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.skip(f"a file system cannot be mounted here: {done.stderr.strip()}")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", place], check=True)


def remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


# --- a disk that is really full


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.8, 0.97])
def test_a_small_disk_that_is_made_larger(
    share: float,
    finished: Finished,
    mounted: Mounted,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Results and token store on a disk with room for a share of them."""
    needed = sum(4096 * -(-path.stat().st_size // 4096) for path in finished.root.rglob("*") if path.is_file())
    disk = mounted(f"size={int(share * needed)},nr_inodes=100000")
    monkeypatch.setenv("ABLATE_CACHE", str(disk / "cache"))
    capsys.readouterr()
    code = bring(write_small(disk), disk / "out")
    said = capsys.readouterr()
    assert code in (1, 2)
    told = " ".join((said.out if code == 1 else said.err).split())
    assert "no space is left on the disk" in told and "are free there" in told and str(disk) in told
    if code == 2:
        assert len(said.err.strip().splitlines()) == 1
    assert not list(disk.rglob("*.tmp"))
    assert not (disk / "out" / "plan.json").exists() or verify.damage(Folder(disk / "out"))[1] == []
    before = {path: path.stat().st_mtime_ns for path in disk.glob("out/states/*/DONE.json")}

    remount(disk, "size=1g")
    assert bring(disk / "small.yaml", disk / "out") == 0
    assert final_weights(disk / "out") == final_weights(finished.root / "out")
    assert disagreements(disk / "out") == []
    assert before == {path: path.stat().st_mtime_ns for path in before}  # what was finished was not done again


@pytest.mark.slow
def test_workers_on_a_full_disk_fail_in_one_paragraph(finished: Finished, mounted: Mounted) -> None:
    """With worker processes, whose output cannot be written either."""
    size = sum(4096 * -(-path.stat().st_size // 4096) for path in (finished.root / "out").rglob("*") if path.is_file())
    disk = mounted(f"size={size // 2}")
    call = command("run", write_small(disk), "-o", disk / "out")
    done = subprocess.run(call, env=environment(finished.root / "cache"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "no space is left on the disk" in " ".join(done.stdout.split()) and "to try again: ablate run" in done.stdout
    remount(disk, "size=1g")
    done = subprocess.run(call, env=environment(finished.root / "cache"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert final_weights(disk / "out") == final_weights(finished.root / "out")


# --- read-only


def test_a_read_only_folder_is_read_by_every_verb_that_reads(
    finished: Finished, mounted: Mounted, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(finished.root / "cache"))
    disk = mounted("size=100m")
    shutil.copytree(finished.root / "out", disk / "out")
    study = write_small(disk)
    remount(disk, "ro")
    folder = str(disk / "out")
    for words in (
        *(["status", folder], ["verify", folder], ["plan", str(study), "-o", folder]),
        *(["compare", folder, "default", "more=0.3"], ["logs", folder, "default/d1"]),
    ):
        assert cli.call(words) == 0, words
    for words in (["run", str(study), "-o", folder], ["report", folder], ["eval", folder]):
        capsys.readouterr()
        assert cli.call(words) == 2, words
        said = capsys.readouterr().err
        assert "cannot be written" in said and "mounted read-only" in said and len(said.splitlines()) == 1


def without_privileges(*arguments: str | Path, cache: Path) -> subprocess.CompletedProcess[str]:
    """`ablate` as somebody whom permissions bind: root loses the right to pass over them."""
    bound = []
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("permissions do not bind root, and there is no setpriv")
        bound = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search,-fowner"]
    return subprocess.run(
        [*bound, *command(*arguments)], env=environment(cache), capture_output=True, text=True, timeout=300
    )


def test_a_folder_without_permission_is_named_before_any_work(copied: Path, finished: Finished) -> None:
    (copied / "out" / "states").chmod(0o555)
    (copied / "out" / ".checksums.json").unlink()
    done = without_privileges("run", copied / "small.yaml", "-o", copied / "out", cache=finished.root / "cache")
    (copied / "out" / "states").chmod(0o755)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        r"ablate: \S+/out/states cannot be written: \S+ may not be written to by \S+ \(owner \S+, group \S+, mode "
        r"0555\)\. Have its owner share it, or choose another folder\.\n",
        done.stderr,
    )


def test_a_file_that_cannot_be_read_is_not_taken_for_damage(copied: Path, finished: Finished) -> None:
    """It may be whole, and another user's: nothing is trained again because of it."""
    model = next((copied / "out").glob("states/*/checkpoints/14080/model/model.safetensors"))
    (copied / "out" / ".checksums.json").unlink()
    model.chmod(0o000)
    before = updates(copied / "out")
    done = without_privileges("run", copied / "small.yaml", "-o", copied / "out", cache=finished.root / "cache")
    assert done.returncode == 2
    assert done.stderr == f"ablate: {model} cannot be read (Permission denied); nothing was changed.\n"
    assert updates(copied / "out") == before


@pytest.mark.slow
def test_a_shared_store_that_is_whole_and_read_only_serves(
    finished: Finished,
    mounted: Mounted,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    disk = mounted("size=100m")
    shutil.copytree(finished.root / "cache", disk / "cache")
    monkeypatch.setenv("ABLATE_CACHE", str(disk / "cache"))
    remount(disk, "ro")
    assert bring(write_small(tmp_path), tmp_path / "out") == 0
    assert final_weights(tmp_path / "out") == final_weights(finished.root / "out")
    (tmp_path / "small.yaml").write_text(SMALL.replace("STABLE", "7680").replace("seed: 1", "seed: 2"))
    capsys.readouterr()
    assert bring(tmp_path / "small.yaml", tmp_path / "new") == 2
    said = capsys.readouterr().err
    assert str(disk / "cache" / "tokens") in said and "mounted read-only" in said


# --- several users


@pytest.mark.parametrize("umask", [0o002, *(pytest.param(mask, marks=pytest.mark.slow) for mask in (0o022, 0o077))])
def test_files_are_as_readable_as_the_umask_says_and_belong_to_the_group_of_their_folder(
    umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 0, GROUP)
    tmp_path.chmod(0o2775)
    group = tmp_path.stat().st_gid
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    before = os.umask(umask)
    try:
        assert bring(write_small(tmp_path), tmp_path / "out") == 0
    finally:
        os.umask(before)
    for path in [*(tmp_path / "out").rglob("*"), *(tmp_path / "cache").rglob("*")]:
        status = path.stat()
        assert status.st_gid == group, path
        if path.name == ".lock":  # whoever may write to the folder may hold it
            assert status.st_mode & 0o777 == (tmp_path / "out").stat().st_mode & 0o666
        elif path.is_dir():
            assert status.st_mode & 0o7777 == 0o2777 & ~umask, path
        else:
            assert status.st_mode & 0o777 == (0o777 if path.suffix == ".sh" else 0o666) & ~umask, path


@pytest.mark.slow
def test_a_colleague_goes_on_with_a_folder_of_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is made by one user with umask 002; another one of the group adds an arm."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can become somebody else")
    os.chown(tmp_path, 0, GROUP)
    tmp_path.chmod(0o2775)
    for parent in tmp_path.parents:
        if parent.name.startswith(("pytest-", "popen-")):
            parent.chmod(0o755)
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    study = write_small(tmp_path)
    before = os.umask(0o002)
    try:
        assert bring(study, tmp_path / "out") == 0
    finally:
        os.umask(before)
    weights = final_weights(tmp_path / "out")
    trained = updates(tmp_path / "out")
    study.write_text(study.read_text().replace("values: [0.3]", "values: [0.3, 0.6]"))
    # The colleague may read everything (the interpreter lies in somebody's home), and write what the group may.
    somebody = ["--reuid", "34567", "--regid", str(GROUP), "--clear-groups"]
    rights = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    call = command("run", study, "-o", tmp_path / "out", "--executor", "debug")
    home = {**environment(tmp_path / "cache"), "HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["setpriv", *somebody, *rights, *call], env=home, umask=0o002, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert final_weights(tmp_path / "out").items() > weights.items()
    assert updates(tmp_path / "out").items() > trained.items()


# --- moved and copied


@pytest.mark.parametrize("files", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_folder_that_was_moved_or_copied_to_another_machine_is_whole_there(
    files: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the token store nor the data is there: nobody needs them until something is to be trained."""
    here, there = tmp_path / "here", tmp_path / "there" / "deeper"
    study = write_small(here)
    if files:
        lines = [json.dumps({"text": f"number {i} is followed by {i + 1}."}) for i in range(400)]
        (here / "more.jsonl").write_text("\n".join(lines))
        study.write_text(study.read_text().replace("{builtin: arithmetic, documents: 200, seed: 1}", FILES))
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    assert bring(study, here / "out") == 0
    there.mkdir(parents=True)
    shutil.move(here / "out", there / "results")
    shutil.move(study, there / "small.yaml")
    weights, trained = final_weights(there / "results"), updates(there / "results")
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "another cache"))
    (tmp_path / "cache").rename(tmp_path / "not here")
    study, folder = there / "small.yaml", there / "results"

    capsys.readouterr()
    assert bring(study, folder) == 0
    said = capsys.readouterr().out
    assert "trained 0 tokens, evaluated 0 states" in said and "tokenizing" not in said
    assert not (tmp_path / "another cache" / "tokens").exists()
    for words in (
        *(["status", str(folder)], ["verify", str(folder)], ["report", str(folder)]),
        *(["compare", str(folder), "default", "more=0.3"], ["plan", str(study), "-o", str(folder)]),
        ["export", str(folder), "default/d1", str(tmp_path / "exported")],
    ):
        assert cli.call(words) == 0, words
    assert (tmp_path / "exported" / "model.safetensors").exists()
    assert updates(folder) == trained
    if files:
        (here / "more.jsonl").rename(there / "more.jsonl")
        assert cli.call(["verify", str(folder), "default/d1"]) == 0  # which builds what training needs
        shutil.rmtree(tmp_path / "another cache")
    study.write_text(study.read_text().replace("values: [0.3]", "values: [0.3, 0.6]"))
    capsys.readouterr()
    assert bring(study, folder) == 0
    assert "tokenizing" in capsys.readouterr().out
    assert final_weights(folder).items() > weights.items()
    assert updates(folder).items() > trained.items()  # of what was there nothing was trained again
    assert str(tmp_path / "here") not in (folder / "manifests" / "sources" / "more.json").read_text()


FILES = "{files: [more.jsonl]}"


# --- clocks


@pytest.mark.parametrize("jump", [-86400.0, pytest.param(86400.0, marks=pytest.mark.slow)])
def test_a_clock_that_is_set_between_two_attempts_changes_nothing(
    jump: float,
    finished: Finished,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ABLATE_CACHE", str(finished.root / "cache"))
    study, seen = write_small(tmp_path), []

    def full(path: Path) -> None:
        seen.append(path)
        if path.name == "7680":
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as first:
        first.setattr(atomic, "before_write", full)
        assert bring(study, tmp_path / "out") == 1
    real = time.time
    with monkeypatch.context() as second:
        second.setattr(time, "time", lambda: real() + jump)
        capsys.readouterr()
        assert bring(study, tmp_path / "out") == 0
        assert cli.call(["status", str(tmp_path / "out"), "--json"]) == 0
    runs = json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]
    assert {run["state"] for run in runs} == {"done"}
    assert final_weights(tmp_path / "out") == final_weights(finished.root / "out")
    again = [state for state in Folder(tmp_path / "out").all_states() if len(state.attempt_numbers()) == 2]
    assert len(again) == 1
    row = metrics.last_row(again[0])
    assert row is not None and row["tokens"] == 7680  # the newest attempt's, whatever its clock said
    assert [event["attempt"] for event in events(tmp_path / "out")[again[0].id]][-1] == 1


def test_a_file_that_was_altered_and_given_its_old_size_and_time_is_found_out(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, study = copied / "out", copied / "small.yaml"
    assert cli.call(["plan", str(study), "-o", str(folder)]) == 0  # everything is hashed, and remembered
    model = next(folder.glob("states/*/checkpoints/14080/model/model.safetensors"))
    future = time.time_ns() + 10**15
    for times in (lambda status: (status.st_atime_ns, status.st_mtime_ns), lambda _: (future, future)):
        status, content = model.stat(), bytearray(model.read_bytes())
        content[-1] ^= 1
        model.write_bytes(bytes(content))
        os.utime(model, ns=times(status))
        capsys.readouterr()
        assert cli.call(["verify", str(folder)]) == 1
        assert cli.call(["plan", str(study), "-o", str(folder)]) == 0
        assert f"{model} was altered" in capsys.readouterr().out
        content[-1] ^= 1
        model.write_bytes(bytes(content))
        assert cli.call(["verify", str(folder)]) == 0


def test_a_token_store_that_was_altered_is_built_again(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.root / "cache", tmp_path / "cache")
    shutil.copytree(finished.root / "out", tmp_path / "out")
    monkeypatch.setenv("ABLATE_CACHE", str(tmp_path / "cache"))
    for manifest in (tmp_path / "out" / "manifests").rglob("*.json"):
        manifest.write_text(manifest.read_text().replace(str(finished.root), str(tmp_path)))
    tokens = next((tmp_path / "cache" / "tokens").glob("*/tokens.bin"))
    plain = tokens.read_bytes()
    status = tokens.stat()
    tokens.write_bytes(plain[:-2] + bytes([plain[-2] ^ 1, plain[-1]]))
    os.utime(tokens, ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    assert cli.call(["verify", str(tmp_path / "out")]) == 1
    assert f"damaged: {tokens} was altered" in capsys.readouterr().out
    assert bring(write_small(tmp_path), tmp_path / "out") == 0
    assert f"damaged: {tokens} was altered" in capsys.readouterr().out
    assert tokens.read_bytes() == plain
    assert cli.call(["verify", str(tmp_path / "out")]) == 0


def test_the_command_line_needs_no_stdout(copied: Path) -> None:
    call = f"{sys.executable} -m harness.cli status {copied / 'out'} >&- 2>&-"
    assert subprocess.run(["sh", "-c", call], timeout=60).returncode == 0


def test_what_dead_processes_were_writing_is_swept_and_what_living_ones_write_is_not(copied: Path) -> None:
    folder = copied / "out"
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    started = processes.process_start(dead.pid)
    dead.wait()
    ours = atomic.staged_name(folder / "x").name.split(".")[-3]
    theirs = f"{dead.pid}-{started}-{ours.split('-')[2]}"
    places = [folder, folder / "manifests", *folder.glob("states/*/checkpoints"), *folder.glob("evals/*")]
    for place in places:
        for tag in (ours, theirs):
            (place / f".half.{tag}.01234567.tmp").mkdir()
            (place / f".half.{tag}.01234567.tmp" / "tokens.bin").write_bytes(b"half")
    assert bring(copied / "small.yaml", folder) == 0
    left = sorted(folder.rglob("*.tmp"))
    assert left == sorted(place / f".half.{ours}.01234567.tmp" for place in places) and len(left) > 5
