"""A real Slurm on this machine for tests: one controller and a few virtual nodes, all in one folder and on loopback.

    python tests/cluster/slurm.py start DIR    prints the environment that sbatch, squeue and others need
    python tests/cluster/slurm.py stop DIR     ends every process of it, jobs too

Needs Debian's packages slurmctld, slurmd, slurm-client and munge (tested with 22.05), and neither their services nor
their configuration nor root. Nothing of it outlives DIR, and several may run side by side.
"""

import argparse
import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
START_SECONDS = 20
STOP_SECONDS = 5
DAEMON_MARK = "PHYSSEG_TEST_SLURM=daemon"

CONFIGURATION = """\
ClusterName=physseg
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
# Loopback only: without these two every daemon listens on all interfaces.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
# No cgroups, no database, no MPI: what works without privileges and without systemd.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
PropagateResourceLimits=NONE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill
# As clusters do: processors and memory are what a job gets, and a killed job may come back.
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobRequeue=1
MaxArraySize=1001
GresTypes=gpu
ReturnToService=2
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=1
# Every node is this machine, under a port of its own, and believes the processors and memory that are said here.
SlurmdParameters=config_overrides
"""


def missing() -> str:
    """Why Slurm cannot be started here, for a skipped test; empty if nothing is in the way."""
    names = [name for name in PROGRAMS if _program(name) is None]
    return f"not installed: {', '.join(names)} (apt-get install slurmctld slurmd slurm-client munge)" if names else ""


def environment(folder: Path) -> dict[str, str]:
    """What programs need in their environment to speak to the Slurm in this folder."""
    return {"SLURM_CONF": str(folder.resolve() / "slurm.conf")}


def start(folder: Path, *, nodes: int = 2, cpus: int = 1, memory_mb: int = 4096, gpus: int = 0) -> dict[str, str]:
    """Start a Slurm of nodes that each believe to have this; returns ``environment(folder)``. GPUs are empty files.

    Raises RuntimeError, with nothing left running, where a daemon ends or the nodes are not ready in time.
    """
    if reason := missing():
        raise RuntimeError(reason)
    folder = folder.resolve()
    if processes(folder):
        raise RuntimeError(f"{folder}: a Slurm is running there")
    _write_configuration(folder, nodes, f"CPUs={cpus} RealMemory={memory_mb} Gres=gpu:{gpus}")
    for index in range(gpus):
        (folder / f"gpu{index}").touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{gpus - 1}]\n" if gpus else "")
    try:
        _start_daemons(folder, nodes)
    except BaseException:
        stop(folder)
        raise
    return environment(folder)


def stop(folder: Path) -> None:
    """Kill every daemon and job of the Slurm in this folder; harmless if it is not running, or only in part.

    Nothing of it is to be kept, and asked to end, Slurm's daemons wait for each other. A process may have forked while
    they were listed, hence again until there is none.
    """

    def are_gone() -> bool:
        found = processes(folder)
        for process in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        return not found

    if not _wait_until(are_gone, STOP_SECONDS):
        raise RuntimeError(f"{folder}: processes {processes(folder)} did not end")


def processes(folder: Path) -> list[int]:
    """Process ids of daemons, steps and jobs of the Slurm in this folder, also of those that left their parent.

    Known by their environment: jobs and daemons both have the configuration's path, and so may a user's shell, which
    has neither a job's number nor the daemons' mark.
    """
    configuration = f"SLURM_CONF={folder.resolve()}/slurm.conf".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile, or is another user's
            variables = (process / "environ").read_bytes().split(b"\0")
            ours = DAEMON_MARK.encode() in variables or any(text.startswith(b"SLURM_JOB_ID=") for text in variables)
            if ours and configuration in variables:
                found.append(int(process.name))
    return found


def _program(name: str) -> str | None:
    """Daemons are in the administrator's folders, which other users' PATH may lack."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _environ(folder: Path) -> dict[str, str]:
    return {**os.environ, **environment(folder)}


def _write_configuration(folder: Path, nodes: int, each: str) -> None:
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "munge").chmod(0o700)
    key = folder / "munge/key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    host = socket.gethostname().split(".")[0]
    port, *node_ports = _free_ports(1 + nodes)
    lines = [
        f"NodeName=n{index} NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port} {each}"
        for index, node_port in enumerate(node_ports, 1)
    ]
    lines.append(f"PartitionName=main Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP")
    head = CONFIGURATION.format(host=host, port=port, user=pwd.getpwuid(os.getuid()).pw_name, folder=folder)
    (folder / "slurm.conf").write_text(head + "\n".join(lines) + "\n")


def _start_daemons(folder: Path, nodes: int) -> None:
    munge = [f"--{name}-file={folder}/munge/{name}" for name in ("key", "pid", "log", "seed")]
    daemons = [_daemon(folder, ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge])]
    _await(folder, daemons, "munged", (folder / "munge.socket").exists)
    daemons.append(_daemon(folder, ["slurmctld", "-D", "-c"]))
    daemons += [_daemon(folder, ["slurmd", "-D", "-N", f"n{index}"]) for index in range(1, nodes + 1)]
    _await(folder, daemons, "nodes", lambda: _idle_nodes(folder) == nodes)


def _daemon(folder: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    program = str(_program(command[0]))
    with (folder / f"{command[0]}.output").open("ab") as output:
        return subprocess.Popen(
            [program, *command[1:]],
            env={**_environ(folder), **dict([DAEMON_MARK.split("=")])},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def _idle_nodes(folder: Path) -> int:
    call = [str(_program("sinfo")), "--noheader", "--Node", "--states=idle", "--format=%N"]
    try:
        found = subprocess.run(call, env=_environ(folder), capture_output=True, text=True, timeout=5, check=False)
    except subprocess.TimeoutExpired:
        return 0
    return len(found.stdout.split())


def _await(folder: Path, daemons: Sequence[subprocess.Popen[bytes]], what: str, is_ready: Callable[[], bool]) -> None:
    def is_over() -> bool:
        return is_ready() or any(daemon.poll() is not None for daemon in daemons)

    over = _wait_until(is_over, START_SECONDS)
    for daemon in daemons:
        if daemon.poll() is not None:
            name = Path(str(daemon.args[0])).name  # type: ignore[index]
            raise RuntimeError(f"{name} ended with {daemon.returncode}:\n{_last_words(folder, name)}")
    if not over:
        raise RuntimeError(f"{what} not ready after {START_SECONDS} s:\n{_last_words(folder, 'slurmctld')}")


def _last_words(folder: Path, name: str) -> str:
    lines = [
        line
        for path in (*folder.glob(f"{name}*.output"), *folder.glob(f"{name}*.log"))
        for line in path.read_text(errors="replace").splitlines()
    ]
    return "\n".join(lines[-10:])


def _wait_until(is_true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (truth := is_true()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return truth


def _free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody uses now; held together while they are chosen, so that they differ."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _export(variables: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}={value}" for name, value in variables.items())


def main() -> None:
    parser = argparse.ArgumentParser(description="A real Slurm on this machine, for tests.")
    parser.add_argument("action", choices=("start", "stop"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    words = parser.parse_args()
    if words.action == "stop":
        stop(words.folder)
        return
    sys.stdout.write(_export(start(words.folder, nodes=words.nodes)) + "\n")


if __name__ == "__main__":
    main()
