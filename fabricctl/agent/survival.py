"""Ends an agent whose allocation is gone when there is no node service left to end it."""

import fcntl
import os
import time

from fabricctl.layout import NodeFiles

CHECK_S = 4.0
# An allocation may show no step for longer than that (a shell of salloc): without a node service
# the agent cannot ask Slurm and gives way; a service that comes back starts it again.
IDLE_S = 20.0


class Survival:
    """Looks every few seconds; :meth:`reason` is cheap in between."""

    def __init__(self, files: NodeFiles, job: int) -> None:
        self._files = files
        self._job = job
        self._next_check_s = time.monotonic() + CHECK_S
        self._idle_since_s: float | None = None

    def reason(self, idle: bool) -> str:
        """Why the agent has to end, empty while it need not. ``idle``: no step runs here."""
        now_s = time.monotonic()
        if not idle:
            self._idle_since_s = None
        elif self._idle_since_s is None:
            self._idle_since_s = now_s
        if now_s < self._next_check_s:
            return ""
        self._next_check_s = now_s + CHECK_S
        if not self._files.job_dir(self._job).exists():
            return "its directory was removed"
        if not self._is_the_agent():
            return "another agent of the job was started"
        if service_lives(self._files):
            return ""
        if self._files.request(self._job, "stop").exists():
            return "the job's epilog ran, and the node service is gone"
        if self._idle_since_s is not None and now_s - self._idle_since_s >= IDLE_S:
            return f"the node service is gone and no step was seen for {IDLE_S:g} s"
        return ""

    def _is_the_agent(self) -> bool:
        """A service that died between forking this agent and hearing of it has a successor, which
        starts one that it can find."""
        try:
            return self._files.agent_pid(self._job).read_text().split()[0] == str(os.getpid())
        except (OSError, IndexError):
            return True


def service_lives(files: NodeFiles) -> bool:
    """Whether a node service holds its lock."""
    try:
        fd = os.open(files.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False
