"""One start of the program: an srun over given nodes, and its certain end."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from fabricctl.errors import SlurmError
from fabricctl.launch.placement import Placement

CANCEL_S = 10.0
# What srun would take from the allocation as it was made: the placement says it anew.
OF_ALLOCATION = frozenset(
    f"SLURM_{name}"
    for name in (
        *("JOB_NUM_NODES", "NNODES", "NTASKS", "NPROCS", "NTASKS_PER_NODE", "TASKS_PER_NODE"),
        *("DISTRIBUTION", "HOSTFILE", "JOB_NODELIST", "NODELIST"),
    )
)


class Step:
    """A running srun; :meth:`cancel` also ends what it left on nodes."""

    carries = False  # a death ends it
    finished = False  # what it had saved is there as long as it has not ended well

    def __init__(
        self,
        job: int,
        launch: int,
        placement: Placement,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        options: Sequence[str] = (),
    ) -> None:
        """Raises :class:`SlurmError`."""
        self.placement, self.launch = placement, launch
        self._job = job
        self._name = f"fabric-run-{launch}"
        self._hosts = _host_file(placement)
        self._cancels: list[subprocess.Popen[bytes]] = []
        given = {key: value for key, value in environment.items() if key not in OF_ALLOCATION}
        # `arbitrary` puts each rank on the node that its line names.
        given["SLURM_HOSTFILE"] = str(self._hosts)
        command = [
            "srun",
            f"--jobid={job}",
            f"--job-name={self._name}",
            "--overlap",
            f"--nodes={len(placement.nodes)}",
            f"--ntasks={len(placement.hosts)}",
            "--distribution=arbitrary",
            "--kill-on-bad-exit=1",
            *options,
            *argv,
        ]
        try:
            self._srun = subprocess.Popen(command, env=given, start_new_session=True)
        except OSError as error:
            raise SlurmError(f"srun: {error.strerror}") from None

    def poll(self) -> int | None:
        """Its exit status as a shell has it; None while it runs."""
        status = self._srun.poll()
        return status if status is None or status >= 0 else 128 - status

    def cancel(self, number: str = "KILL") -> None:
        """Ends the tasks that can be reached. Neither scancel nor srun is waited for: with a
        dead node in the step both stay for tens of seconds after the others have ended."""
        self._cancels += cancel_named(self._job, self._name, number)

    def lost(self, nodes: Collection[str]) -> None:
        """Nothing more is to be done for dead nodes."""

    def leave(self, _node: str, _to: str) -> bool:
        """Never while it runs: all ranks save, end and are started again."""
        return False

    def abandon(self) -> None:
        """srun itself goes; to be called after :meth:`cancel`. Its tasks are gone by then, or out
        of reach; what scancel waits for goes on without us."""
        with contextlib.suppress(ProcessLookupError):
            self._srun.kill()
        self._srun.wait()
        self._hosts.unlink(missing_ok=True)


def cancel_named(job: int, name: str, number: str) -> list[subprocess.Popen[bytes]]:
    """Sends a signal to the job's steps of that name, and does not wait for it."""
    argv = ["squeue", "--steps", "--noheader", f"--jobs={job}", "--format=%i %j"]
    null = subprocess.DEVNULL
    begun: list[subprocess.Popen[bytes]] = []
    try:
        done = subprocess.run(argv, timeout=CANCEL_S, check=False, capture_output=True, text=True)
    except (subprocess.TimeoutExpired, OSError):
        return begun
    lines = [line.split() for line in done.stdout.splitlines()]
    steps = [words[0] for words in lines if len(words) == 2 and words[1] == name]
    for step in steps:
        with contextlib.suppress(OSError):
            argv = ["scancel", f"--signal={number}", step]
            begun.append(subprocess.Popen(argv, stdout=null, stderr=null))
    return begun


def _host_file(placement: Placement) -> Path:
    fd, name = tempfile.mkstemp(prefix="fabric-hosts-")
    with os.fdopen(fd, "w") as stream:
        stream.write("\n".join(placement.hosts) + "\n")
    return Path(name)
