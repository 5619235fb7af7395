"""A real Slurm on this machine: munged, slurmctld and four slurmd under one folder, with a configuration of its own.

Nothing outside the folder is touched, so that a Slurm which the machine may have is left alone and two clusters stand
beside each other. Debian: `apt-get install slurm-wlm munge`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

NODES = ("n1", "n2", "n3", "n4")
DAEMONS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
_SBIN = "/usr/sbin"  # where Debian has the daemons; not on everybody's PATH

CONF = """\
ClusterName=ablate
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool.%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=100000,batch_sched_delay=0
DependencyParameters=kill_invalid_depend
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SlurmdTimeout=8
SlurmctldTimeout=10
KillWait=3
CompleteWait=0
MinJobAge=600
InactiveLimit=0
ReturnToService=2
MaxArraySize={max_array_size}
MaxJobCount=20000
{more}
NodeName=n[1-4] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports}] CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs of Slurm and munge that this machine lacks."""
    return [name for name in DAEMONS if program(name) is None]


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_SBIN}")


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on."""
    for first in range(17001 + os.getpid() % 400 * 20, 60000, 20):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
        return first
    raise RuntimeError("no free ports")


class Cluster:
    """A running cluster of four nodes. `environment` is what its clients need (SLURM_CONF)."""

    def __init__(self, root: Path, cpus: int = 2, max_array_size: int = 1001, more: str = "") -> None:
        self.root = root
        self.cpus = cpus
        self.conf = root / "slurm.conf"
        self.environment = {"SLURM_CONF": str(self.conf)}
        self._munged: subprocess.Popen[bytes] | None = None
        self._ctld: subprocess.Popen[bytes] | None = None
        self._slurmd: dict[str, subprocess.Popen[bytes]] = {}
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o755)  # munged and slurmctld refuse a folder that others may write to
        (root / "state").mkdir()
        port = free_ports(8)
        self.conf.write_text(
            CONF.format(
                host=socket.gethostname().split(".")[0],
                user=_user(),
                root=root,
                port=port,
                ports=f"{port + 1}-{port + 4}",
                cpus=cpus,
                max_array_size=max_array_size,
                more=more,
            )
        )

    def start(self) -> None:
        key = self.root / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._munged = self._spawn(
            [
                "munged",
                "--foreground",
                "--force",
                "--num-threads=4",
                f"--socket={self.root}/munge.socket",
                f"--key-file={key}",
                f"--pid-file={self.root}/munged.pid",
                f"--log-file={self.root}/munged.log",
                f"--seed-file={self.root}/munged.seed",
            ],
            "munged",
        )
        self.wait_for(lambda: (self.root / "munge.socket").exists(), "munged to listen")
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        self.wait_for(lambda: self.idle() == len(NODES), "four idle nodes", 60)

    def start_controller(self) -> None:
        self._ctld = self._spawn(["slurmctld", "-D", "-i", "-f", str(self.conf)], "slurmctld")

    def start_node(self, node: str) -> None:
        (self.root / f"spool.{node}").mkdir(exist_ok=True)
        self._slurmd[node] = self._spawn(["slurmd", "-D", "-N", node, "-f", str(self.conf)], f"slurmd.{node}")

    def kill_node(self, node: str) -> None:
        """`kill -9` of a slurmd; its steps live on, as they do on a real node."""
        self._slurmd[node].kill()
        self._slurmd[node].wait()

    def node_runs(self, node: str) -> bool:
        return self._slurmd[node].poll() is None

    def clear(self) -> None:
        """An empty queue on four nodes that are up."""
        for node in NODES:
            if not self.node_runs(node):
                self.start_node(node)
        self.command("scancel", "--full", "--user", _user(), check=False)
        self.command("scontrol", "update", "partitionname=low", "state=up")
        self.wait_for(lambda: not self.command("squeue", "-h").strip(), "an empty queue", 30)
        self.wait_for(lambda: self.idle() == len(NODES), "four idle nodes", 30)
        self._kill_steps()

    def stop(self) -> None:
        with contextlib.suppress(Exception):
            self.command("scancel", "--full", "--user", _user())
            self.wait_for(lambda: not self.command("squeue", "-h").strip(), "an empty queue", 20)
        for process in (*self._slurmd.values(), self._ctld, self._munged):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        self._kill_steps()

    def command(self, name: str, *arguments: str, check: bool = True) -> str:
        """What a client command of the cluster prints."""
        done = subprocess.run(
            [str(program(name)), *arguments],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{name} {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def idle(self) -> int:
        """How many nodes could take a job now."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            return len(self.command("sinfo", "-h", "-N", "-p", "low", "-t", "idle,mix,alloc", "-o", "%N").split())
        return 0

    def wait_for(self, true: Callable[[], bool], what: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not true():
            if time.monotonic() > deadline:
                raise RuntimeError(f"waited {seconds:.0f} s for {what}; logs in {self.root}")
            time.sleep(0.1)

    def steps(self) -> list[int]:
        """Processes of this cluster's slurmstepd, which a killed slurmd leaves alive."""
        return [pid for pid, words in _processes() if "slurmstepd" in words[0] and self._ours(pid)]

    def _kill_steps(self) -> None:
        for pid in self.steps():
            for child in (*children(pid), pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)

    def _ours(self, pid: int) -> bool:
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False
        return str(self.conf).encode() in environ

    def _spawn(self, command: list[str], name: str) -> subprocess.Popen[bytes]:
        with (self.root / f"{name}.out").open("ab") as out:
            return subprocess.Popen(
                [str(program(command[0])), *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **self.environment},
                start_new_session=True,
            )


@contextlib.contextmanager
def running(root: Path, cpus: int = 2, max_array_size: int = 1001, more: str = "") -> Iterator[Cluster]:
    """A cluster for as long as the block runs."""
    cluster = Cluster(root, cpus, max_array_size, more)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def children(pid: int) -> list[int]:
    """All descendants of a process, deepest first."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
                parents.setdefault(parent, []).append(int(path.name))
    found: list[int] = []
    frontier = [pid]
    for parent in frontier:
        frontier += parents.get(parent, [])
        found += parents.get(parent, [])
    return found[::-1]


def _processes() -> Iterator[tuple[int, list[str]]]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                words = (path / "cmdline").read_bytes().decode(errors="replace").split("\0")
                yield int(path.name), words


def _user() -> str:
    import getpass

    return getpass.getuser()
