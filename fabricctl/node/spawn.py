"""Processes of the node service: agents forked from it, without root's rights."""

import contextlib
import ctypes
import os
import pwd
import resource
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fabricctl.agent import samplers
from fabricctl.agent.log import NodeLog
from fabricctl.agent.main import END_REASONS, Agent
from fabricctl.agent.record import Assignment
from fabricctl.clock import nics
from fabricctl.config import Config
from fabricctl.errors import SystemRefusedError
from fabricctl.store.schema import Severity
from fabricctl.telemetry import processes

_PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 4, 15, 38  # linux/prctl.h
_REALTIME_LIMIT_US = 1_000_000  # an agent's longest work, closing a journal, takes milliseconds
_NICE = -15
AGENT_COMM = "fabric-agent"  # 15 characters at most
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Identity:
    """Whom a process becomes."""

    uid: int
    gid: int


def agent_identity(user: str) -> Identity:
    """The agents' user; raises :class:`SystemRefusedError` when there is none or it is root."""
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise SystemRefusedError(
            f"agent.user {user!r}: no such user on this node; make it: useradd -r {user}"
        ) from None
    if entry.pw_uid == 0:
        raise SystemRefusedError(f"agent.user {user!r}: agents do not run as root; choose another")
    return Identity(entry.pw_uid, entry.pw_gid)


def leave_no_core() -> None:
    """Neither a core dump nor a debugger of another process gets at the keys in this one, nor in
    those that are forked from it (prctl(2), PR_SET_DUMPABLE; core(5)). Raises OSError."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_DUMPABLE refused")


def drop_to(identity: Identity) -> None:
    """This process loses root's rights for good; raises OSError."""
    os.setgroups([])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no_new_privs refused")
    if identity.uid != 0:
        try:
            os.setuid(0)
        except PermissionError:
            return
        raise OSError(0, "the way back to root is open")


def fork_agent(given: Assignment, config: Config, identity: Identity, log: NodeLog) -> int:
    """The pid of a new agent; raises OSError when the system has no room for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_REASONS)
    try:
        pid = os.fork()
    except OSError:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        raise
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid
    status = 70  # EX_SOFTWARE
    try:
        clocks = _become_agent(given, identity, log, config)
        Agent(replace(given, nic_clocks=clocks), config, log).run()
        status = 0
    except BaseException:
        lines = traceback.format_exc().strip().splitlines()
        who = f"agent job={given.start.job}"
        log.write(who, "ends by an error: " + " | ".join(lines[-6:]), Severity.ERROR)
    finally:
        os._exit(status)


def _become_agent(
    given: Assignment, identity: Identity, log: NodeLog, config: Config
) -> dict[int, int]:
    """The clocks of NICs that it opened as root, by number."""
    signal.set_wakeup_fd(-1)
    os.setsid()
    os.chdir("/")
    os.umask(0o077)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1) if log.fileno() == 2 else (0, 1, 2):
        os.dup2(null, fd)
    close_all_but((log.fileno(),))
    _libc.prctl(_PR_SET_NAME, AGENT_COMM.encode(), 0, 0, 0)
    set_title(f"{AGENT_COMM}: job {given.start.job}")
    if config.agent.realtime:
        _go_ahead_of_the_job()
    clocks = _nic_clocks(given, config, log) if len(given.start.nodes) > 1 else {}
    drop_to(identity)
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN if number != signal.SIGCHLD else signal.SIG_DFL)
    return clocks


def _nic_clocks(given: Assignment, config: Config, log: NodeLog) -> dict[int, int]:
    """What the job clock needs root for: to open the NICs' clocks, and to switch on their stamps
    where the site wants it."""
    if not config.clock.enabled or config.clock.nic_stamps == "off":
        return {}
    if config.clock.nic_stamps == "enable":
        for rail in samplers.choose_rails(config, given.start.node)[0]:
            if told := nics.enable(rail):
                log.write(f"clock job={given.start.job}", told, Severity.INFO)
    return nics.open_clocks(name for _, name in socket.if_nameindex())


def _go_ahead_of_the_job() -> None:
    """Real-time priority, with the kernel as the guard: what does not block for a whole second of
    CPU time is killed (RLIMIT_RTTIME, getrlimit(2)) and started again by the service.

    Where the control group leaves no real-time share, a better nice value has to do.
    """
    resource.setrlimit(resource.RLIMIT_RTTIME, (_REALTIME_LIMIT_US, _REALTIME_LIMIT_US))
    try:
        policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(0, policy, os.sched_param(1))
    except PermissionError:
        with contextlib.suppress(PermissionError):  # root of a user namespace may not either
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def close_all_but(kept: Sequence[int]) -> None:
    """Closes what was inherited, but for the standard three and ``kept``."""
    begin = 3
    for fd in sorted(fd for fd in kept if fd >= 3):
        os.closerange(begin, fd)
        begin = fd + 1
    limit = os.sysconf("SC_OPEN_MAX")
    os.closerange(begin, min(limit, 65_536))


def set_title(title: str) -> None:
    """Writes over the command line that ps shows: this process is no node service."""
    with open("/proc/self/stat", "rb") as stream:  # noqa: PTH123
        words = stream.read().rpartition(b")")[2].split()
    begin, end = int(words[45]), int(words[46])  # arg_start, arg_end: fields 48 and 49
    if 0 < begin < end < begin + 65_536:
        text = title.encode()[: end - begin - 1]
        ctypes.memset(begin, 0, end - begin)
        ctypes.memmove(begin, text, len(text))


def is_agent(pid: int, start_ticks: int, identity: Identity) -> bool:
    """Whether ``pid`` is the agent that wrote its number down, not a later process, nor one that
    was written there to have it killed."""
    stat = processes.read_stat(pid)
    return (
        stat is not None
        and stat.state not in "ZX"
        and stat.start_ticks == start_ticks
        and stat.comm == AGENT_COMM
        and processes.owner(pid) == identity.uid
    )
