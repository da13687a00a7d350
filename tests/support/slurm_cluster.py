"""A real Slurm cluster on this machine, for the duration of a test.

    python tests/support/slurm_cluster.py run -- sbatch --wait job.sh
    eval "$(python tests/support/slurm_cluster.py start)"
    sbatch job.sh
    python tests/support/slurm_cluster.py stop

munged, slurmctld and slurmd run as the current user, with their key, ports, logs and state in one
temporary folder, which `$SLURM_CONF` names. Two jobs of one CPU run at a time; those of the
partition `urgent` preempt those of `debug` (the default), which are requeued. Timeouts of minutes
are shortened to seconds: a requeued job starts after `REQUEUE_SECONDS`, and a job that does not end
on a signal is killed after `KILL_SECONDS`. Without accounting, `sacct` does not work.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
REQUEUE_SECONDS = 5  # Slurm's minimum
KILL_SECONDS = 20
START_SECONDS = 30

_children: list[subprocess.Popen] = []  # daemons started by this process

CONF = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={d_port}
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
# cred_expire is also the delay of a requeued job; its default is 120 seconds
AuthInfo=socket={folder}/munge.socket,cred_expire={requeue}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
JobRequeue=1
KillWait={kill}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime={grace}
PartitionName=urgent Nodes={host} MaxTime=INFINITE PriorityTier=9 PreemptMode=OFF
"""


def available() -> bool:
    """Whether Slurm and munge are installed."""
    return all(map(_which, (*DAEMONS, "sbatch", "srun", "scontrol")))


@contextlib.contextmanager
def cluster(cpus=2, grace=0):
    """While open, `$SLURM_CONF` names a running cluster of one node: its folder.

    Args:
        grace: seconds between SIGTERM and preemption; a job that ends within them counts as
            completed and is not requeued.
    """
    folder = Path(
        tempfile.mkdtemp(prefix="slurm-")
    )  # short: a socket's path has at most 107 characters
    saved = {name: value for name, value in os.environ.items() if name.startswith("SLURM_")}
    for name in saved:  # this may be a job of another cluster
        del os.environ[name]
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    on_term = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        _start(folder, cpus, grace)
        yield folder
    finally:
        stop(folder)
        signal.signal(signal.SIGTERM, on_term)
        del os.environ["SLURM_CONF"]
        os.environ.update(saved)


def until(condition, seconds=60) -> None:
    """Wait until a condition is true.

    Raises:
        TimeoutError: it stayed false; the queue and the ends of the logs are printed.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            for log in Path(os.environ["SLURM_CONF"]).parent.glob("slurm*.log"):
                print(log.name, *log.read_text().splitlines()[-20:], sep="\n")
            print(output_of("squeue", "-t", "all"))
            raise TimeoutError(f"not within {seconds} seconds")
        time.sleep(0.1)


def stop(folder: Path) -> None:
    """Stop the cluster with its jobs, and remove its folder."""
    deadline = time.monotonic() + 10
    while (pids := _processes(folder)) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    while _children:
        _children.pop().wait(10)
    shutil.rmtree(folder)


def _start(folder: Path, cpus: int, grace: int) -> None:
    """Write the configuration, start the daemons, and wait until a job could run."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    ctld_port, d_port = _free_ports(2)
    text = CONF.format(
        folder=folder,
        host=socket.gethostname().split(".")[0],
        user=output_of("id", "-un").strip(),
        ctld_port=ctld_port,
        d_port=d_port,
        requeue=REQUEUE_SECONDS,
        kill=KILL_SECONDS,
        cpus=cpus,
        grace=grace,
    )
    (folder / "slurm.conf").write_text(text)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(secrets.token_bytes(128))
    names = {"socket": "socket", "key-file": "key", "pid-file": "pid"}
    files = [f"--{option}={folder}/munge.{end}" for option, end in names.items()]
    files += [f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"]
    # --force: munged refuses a folder that only this user can read
    _daemon(folder, "munged", "--foreground", "--force", *files)
    until((folder / "munge.socket").exists, START_SECONDS)
    _daemon(folder, "slurmctld", "-D", "-c")
    _daemon(folder, "slurmd", "-D")
    until(lambda: "idle" in _try("sinfo", "-h", "-o", "%T"), START_SECONDS)


def _daemon(folder: Path, name: str, *words: str) -> None:
    """Start a daemon in its own session, as Ctrl-C is meant for the tests, which then stop it."""
    with open(folder / f"{name}.out", "w") as out:
        command = [_which(name), *words]
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    _children.append(child)


def _processes(folder: Path) -> list[int]:
    """The daemons of this cluster and the processes of its jobs, found by its configuration file in
    their environment, and by their names or job ids."""
    variable = f"SLURM_CONF={folder}/slurm.conf".encode()
    pids = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (path / "environ").read_bytes().split(b"\0")
            name = os.readlink(path / "exe").rsplit("/", 1)[-1]
            in_job = any(text.startswith(b"SLURM_JOB_ID=") for text in variables)
            if variable in variables and (name.startswith((*DAEMONS, "slurmstepd")) or in_job):
                pids.append(int(path.name))
    return pids


def _free_ports(count: int) -> list[int]:
    """Distinct unused ports."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _which(name: str) -> str | None:
    """The path of a program; daemons are often outside of a user's PATH."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def output_of(*command: str, cwd=None) -> str:
    """The standard output of a command.

    Raises:
        RuntimeError: it failed; with its standard error.
    """
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr}")
    return result.stdout


def _try(*words: str) -> str:
    try:
        return output_of(*words)
    except RuntimeError:
        return ""


def main() -> int:
    """start, stop, or run -- command: its exit status."""
    if not available():
        sys.exit("Slurm is not installed: apt-get install slurm-wlm munge")
    match sys.argv[1:]:
        case ["start"]:
            folder = Path(tempfile.mkdtemp(prefix="slurm-"))
            os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
            try:
                _start(folder, cpus=2, grace=0)
            except BaseException:
                stop(folder)
                raise
            print(f"export SLURM_CONF={folder}/slurm.conf")
        case ["stop"] if "SLURM_CONF" in os.environ:
            stop(Path(os.environ["SLURM_CONF"]).parent)
        case ["run", "--", *words] if words:
            with cluster():
                return subprocess.run(words).returncode
        case _:
            sys.exit(__doc__)
    return 0


if __name__ == "__main__":
    sys.exit(main())
