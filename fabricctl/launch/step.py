"""One start of the program: an srun over given nodes, and its certain end."""

import contextlib
import os
import re
import signal
import subprocess
import threading
from collections.abc import Collection, Mapping, Sequence

from fabricctl.errors import SlurmError
from fabricctl.launch.placement import Placement

CANCEL_S = 10.0
WORDS_S = 2.0  # for the last of what srun wrote to be handed on
LINE_MOST = 4096
# What srun says of a rank, or of several on a node, that ended otherwise than well.
_ENDED = re.compile(
    rb"srun: error: \S+: tasks? [0-9,-]+: (?:Exited with exit code ([0-9]{1,3})"
    rb"|([A-Z][^:]*?)(?: \(core dumped\))?)"
)
_SIGNALS = {(signal.strsignal(one) or "").encode(): 128 + one for one in signal.valid_signals()}
KILLED = 128 + signal.SIGKILL
_TOLERANT = ("--kill-on-bad-exit=0", "-K0")  # a rank's end is none of the program
# What srun would take from the allocation as it was made: the placement says it anew.
OF_ALLOCATION = frozenset(
    f"SLURM_{name}"
    for name in (
        *("JOB_NUM_NODES", "NNODES", "NTASKS", "NPROCS", "NTASKS_PER_NODE", "TASKS_PER_NODE"),
        *("DISTRIBUTION", "HOSTFILE", "JOB_NODELIST", "NODELIST"),
    )
)


class Words(threading.Thread):
    """Hands on what srun and the ranks write to stderr, byte by byte as it comes; ``status`` is of
    the rank that ended badly first."""

    def __init__(self, source: int, to: int) -> None:
        super().__init__(daemon=True)
        self.status: int | None = None
        self.patient = True  # its end is waited for, once
        self._source, self._to = source, to
        self.start()

    def run(self) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            while data := os.read(self._source, 1 << 16):
                with contextlib.suppress(OSError):  # who read it is gone
                    _write_all(self._to, data)
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-LINE_MOST:]
                for line in lines:
                    self._look(line)

    def _look(self, line: bytes) -> None:
        match = _ENDED.fullmatch(line) if self.status is None else None
        if match is not None:
            by_signal = _SIGNALS.get(match[2] or b"", KILLED)
            self.status = int(match[1]) if match[1] else by_signal


def _write_all(to: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(to, view) :]


class Step:
    """A running srun; :meth:`cancel` also ends what it left on nodes."""

    carries = False  # a death ends it
    finished = False  # what it had saved is there as long as it has not ended well
    unused = False

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
        self._cancels: list[subprocess.Popen[bytes]] = []
        self._killed = False
        given = {key: value for key, value in environment.items() if key not in OF_ALLOCATION}
        # `arbitrary` puts each rank on the node that its line names.
        hosts = _host_file(placement)
        given["SLURM_HOSTFILE"] = f"/proc/self/fd/{hosts}"
        command = [
            "srun",
            f"--jobid={job}",
            f"--job-name={self._name}",
            "--overlap",
            f"--nodes={len(placement.nodes)}",
            f"--ntasks={len(placement.hosts)}",
            "--distribution=arbitrary",
            "--kill-on-bad-exit=0",  # we end the others ourselves, see poll()
            *options,
            *argv,
        ]
        self._all_or_none = not any(word in options for word in _TOLERANT)
        pipe = subprocess.PIPE
        try:
            self._srun = subprocess.Popen(
                command, env=given, start_new_session=True, stderr=pipe, pass_fds=(hosts,)
            )
        except OSError as error:
            raise SlurmError(f"srun: {error.strerror}") from None
        finally:
            os.close(hosts)
        assert self._srun.stderr is not None
        self._words = Words(self._srun.stderr.fileno(), 2)

    def poll(self, *, early: bool = False) -> int | None:
        """Its exit status as a shell has it; None while it runs. srun's own is the highest of all
        ranks, also of those that it killed: where one ended by itself before, that one's is the
        program's. ``early``: at the first word of a rank that ended badly, the others are still to
        be ended. Slurm would give them SIGTERM, which those with checkpoints catch, and 5 s."""
        status = self._srun.poll()
        if status is None:
            return self._words.status if early and self._all_or_none else None
        if self._words.patient:
            self._words.patient = False
            self._words.join(WORDS_S)
        status = status if status >= 0 else 128 - status
        own = self._words.status or status
        return (own if own < 128 else status) if status else 0

    def cancel(self, number: str = "KILL") -> bool:
        """Ends the tasks that can be reached; False: Slurm knows of none yet. Neither scancel nor
        srun is waited for: with a dead node in the step both stay for tens of seconds after the
        others have ended."""
        begun = cancel_named(self._job, self._name, number)
        self._cancels += begun
        self._killed |= number == "KILL" and bool(begun)
        return bool(begun)

    def lost(self, nodes: Collection[str]) -> None:
        """Nothing more is to be done for dead nodes."""

    def leave(self, _node: str, _to: str) -> bool:
        """Never while it runs: all ranks save, end and are started again."""
        return False

    def abandon(self) -> None:
        """srun itself goes, and what it started, where that was not cancelled yet; what scancel
        waits for goes on without us."""
        if self._srun.poll() is None and not self._killed:
            self.cancel()
        with contextlib.suppress(ProcessLookupError):
            self._srun.kill()
        self._srun.wait()
        self._words.join(WORDS_S)
        if self._srun.stderr is not None and not self._words.is_alive():
            self._srun.stderr.close()


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


def _host_file(placement: Placement) -> int:
    """A descriptor of a file that is gone with its readers, however we end."""
    fd = os.memfd_create("fabric-hosts")
    with open(fd, "w", closefd=False) as stream:
        stream.write("\n".join(placement.hosts) + "\n")
    return fd
