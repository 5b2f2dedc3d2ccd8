"""Where files lie: the one module that knows file names on nodes and in the shared directory.

On a node (``run_dir``, ``spool_dir`` from the configuration)::

    run_dir/                         root 0711
      node.lock                      locked (flock) while the node service lives
      boot_id                        of the kernel under which all this was made
      live/<job>                     root 0600   the start request of each allocation that is there,
                                                 with the time of its begin; directory 0700
      live/<job>.<begin>             root 0600   the same of one that has ended, while its spool is
                                                 too full to take it
      requests/                      root 0711   <job>.start, <job>.stop  0600, from prolog, epilog
      jobs/<job>/                    agent user 0711
        envelope                     owner: the job's user 0400          docs/envelope.md
        status                       agent user 0644                     docs/envelope.md
        agent.pid                    agent user 0644   "<pid> <start ticks>"
        clock                        agent user 0644   the clock page                docs/clock.md
      steps/                         root 0755   made by the service; nothing of it is the agent's,
        <job>/                       root 0755   because the plugin writes here as root; made by
          <step>                     root 0644   the plugin, one per step that it saw begin; removed
                                                 with the job by the service
      paths/                         root 0755   link failover (docs/paths.md)
        lock  <slot>.lease           root 0600, 0644   locked while a fabric-pathd lives
        sysctl.saved                 root 0644   what to put back
        <job>/                       root 0755
          state                      root 0644   fields: v, state (starting, ready, off), why...
          env                        root 0644   NAME=value for the job's tasks; there when ready
          events                     root 0644   one line of fields an event, joined by ;
          control                    root 0600   datagram socket
      steer/                         root 0755   clocks that follow a job's (docs/clock.md)
        <clock>.lease                root 0644   locked while held; what was there before
        <job>.state                  root 0644   fields: v, state, why, and each clock's offset
      track/                         root 0711   a tmpfs of state.track_mib (docs/tracker.md)
        <job>/                       the job's user, group of the agents, 0750
          <step>-<pid>.track         a rank's block
          events                     its user's 0644   one line of fields a checkpoint, joined by ;
          keeper                     its user's 0600   socket of the keeper of checkpoints
    spool_dir/                       root 0711
      <job>.<begin>/                 agent user 0700   begin: CLOCK_REALTIME ns of the first start
        start                        root 0600   the start request, for the service after a crash
        part                         root 0600   its part is in the shared directory; not yet merged
        <n>.journal                  one per life of the agent            docs/data-format.md

In the shared directory (``trace.dir``)::

    <user>/job-<job>.h5              the user's 0600    the job's trace
    <user>/job-<job>.r<n>.h5         the same, n-th requeue
    <user>/job-<array>_<task>.h5     link to the newest trace of that array task
    <user>/job-<job>+<offset>.h5     the same, of that component of a heterogeneous job
    <user>/.parts/job-<job>/<node>.<begin>.h5   node traces on their way
"""

import re
from pathlib import Path

from fabricctl.errors import UsageError

_JOB = re.compile(r"[1-9][0-9]{0,9}")
_ALIAS = re.compile(r"[1-9][0-9]{0,9}[_+][0-9]{1,10}")


def job_number(text: str) -> int:
    """A Slurm job id as a number; raises :class:`UsageError` for anything else."""
    if not _JOB.fullmatch(text):
        raise UsageError(f"job {text[:40]!r}: a job id is a whole number above 0")
    return int(text)


class NodeFiles:
    """Names below the node's ``run_dir``."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.lock = run_dir / "node.lock"
        self.requests = run_dir / "requests"
        self.jobs = run_dir / "jobs"
        self.steps_dir = run_dir / "steps"
        self.paths = run_dir / "paths"
        self.live_dir = run_dir / "live"
        self.track = run_dir / "track"
        self.steer = run_dir / "steer"

    def job_dir(self, job: int) -> Path:
        """The running allocation's directory."""
        return self.jobs / str(job)

    def request(self, job: int, what: str) -> Path:
        """``what``: ``start`` or ``stop``."""
        return self.requests / f"{job}.{what}"

    def live(self, job: int) -> Path:
        """The node service's own note of an allocation."""
        return self.live_dir / str(job)

    def unsaved(self, spool: Path) -> Path:
        """The start request of an allocation that has ended, which its spool did not take yet."""
        return self.live_dir / spool.name

    def envelope(self, job: int) -> Path:
        return self.job_dir(job) / "envelope"

    def status(self, job: int) -> Path:
        return self.job_dir(job) / "status"

    def agent_pid(self, job: int) -> Path:
        return self.job_dir(job) / "agent.pid"

    def clock(self, job: int) -> Path:
        return self.job_dir(job) / "clock"

    def steps(self, job: int) -> Path:
        """The plugin's marks, one file a step; absent until the first step begins."""
        return self.steps_dir / str(job)

    def paths_dir(self, job: int) -> Path:
        """What link failover of the job keeps."""
        return self.paths / str(job)

    def steer_state(self, job: int) -> Path:
        """What fabric-steer of the job says; absent where none was asked for."""
        return self.steer / f"{job}.state"

    def path_events(self, job: int) -> Path:
        return self.paths_dir(job) / "events"

    def track_dir(self, job: int) -> Path:
        """Where ranks of the job on this node say where they stand."""
        return self.track / str(job)

    def checkpoint_events(self, job: int) -> Path:
        """What the job's programs on this node tell of their checkpoints."""
        return self.track_dir(job) / "events"

    def keeper(self, job: int) -> Path:
        """The socket of the job's keeper of checkpoints."""
        return self.track_dir(job) / "keeper"


def spool(spool_dir: Path, job: int, begin_real_ns: int) -> Path:
    """The directory of one attempt of a job on this node."""
    return spool_dir / f"{job}.{begin_real_ns}"


def parse_spool(path: Path) -> tuple[int, int] | None:
    """``(job, begin_real_ns)`` of a spool directory, None for a foreign name."""
    match = re.fullmatch(r"([1-9][0-9]{0,9})\.([0-9]{1,19})", path.name)
    return (int(match.group(1)), int(match.group(2))) if match else None


def part_file(user_dir: Path, job: int, node: str, begin_real_ns: int) -> Path:
    """A node trace waiting to be merged."""
    return user_dir / ".parts" / f"job-{job}" / f"{node}.{begin_real_ns}.h5"


def trace_file(user_dir: Path, job: int, requeue: int = 0) -> Path:
    """The job's trace; ``requeue`` counts the restarts before it."""
    return user_dir / (f"job-{job}.r{requeue}.h5" if requeue else f"job-{job}.h5")


def parse_trace_file(path: Path) -> tuple[int, int] | None:
    """``(job, requeue)`` of a job's trace, None for a foreign name."""
    match = re.fullmatch(r"job-([1-9][0-9]{0,9})(?:\.r([1-9][0-9]{0,5}))?\.h5", path.name)
    return (int(match.group(1)), int(match.group(2) or 0)) if match else None


def alias_link(user_dir: Path, name: str) -> Path | None:
    """The link to the newest trace of an array's task (``12_3``) or of a component of a
    heterogeneous job (``12+1``); None for any other name."""
    return user_dir / f"job-{name}.h5" if _ALIAS.fullmatch(name) else None
