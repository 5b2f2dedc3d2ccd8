"""Limits and policy of one `fabricctl run`, in one place."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fabricctl.store.schema import StallKind

DO_NOT_RESTART = 79  # a program that ends with this is not started again
# A start that failed sooner, and whose ranks told no new iteration, made no progress. Starting
# alone takes tens of seconds on big or busy machines.
PROGRESS_S = 60.0
QUICK_FAILURES = 3
# A verdict leaves no explanation that ends by itself; what a person does by hand (a debugger, a
# cable put back) and failover to another rail get this time.
HANG_LEAST_S = 10.0
# Who computes may come yet: rank 0 reads its input while all others wait for it.
COMPUTING_LEAST_S = 900.0
HANG_USUAL = 5.0  # times the longest that ranks were seen to compute while others waited


@dataclass(frozen=True)
class Policy:
    """``hang_s`` None: from what the job normally does; 0: never. ``min_nodes`` 0: only with as
    many nodes as before. ``halt_at_s``: Unix time at which all save and end."""

    max_restarts: int = 20
    mpi: str = "pmix"
    track: bool = True
    nccl: bool = False
    options: tuple[str, ...] = ()
    hang_s: float | None = None
    min_nodes: int = 0
    halt_at_s: float | None = None
    live: bool = False

    def refusal(self, launch: int, status: int | None, dead: bool, quick: int) -> str:
        """Why a program that ended so is not started again, or ""."""
        if status == DO_NOT_RESTART and not dead:
            return f"the program ended with {DO_NOT_RESTART}: do not restart"
        if launch >= self.max_restarts:
            return f"it was started {launch + 1} times (--max-restarts)"
        if quick >= QUICK_FAILURES:
            return f"it failed {quick} times within {PROGRESS_S:g} s of its start"
        return ""


@dataclass(frozen=True)
class Stall:
    """A verdict that an agent holds; ``usual_s``: the longest that is normal for the job."""

    kind: StallKind
    node: str
    text: str
    since_s: float
    usual_s: float
    computing: bool = False

    @property
    def limit_s(self) -> float:
        """How long it may last, from what the job normally does."""
        least_s = COMPUTING_LEAST_S if self.computing else HANG_LEAST_S
        return max(least_s, HANG_USUAL * self.usual_s)


@dataclass
class HangWatch:
    """Whether ranks hang for so long that something must be done. Times are of ``clock``."""

    policy: Policy
    clock: Callable[[], float] = time.monotonic
    _stall: Stall | None = None
    _heard_s: float = 0.0

    def hear(self, message: Mapping[str, str], launch: int) -> None:
        """An agent's answer; those that hold no verdict on this launch say none."""
        found = _stall(message, self.clock())
        if found is None or message.get("stall_launch") != str(launch):
            return
        if self._stall is None or found.text != self._stall.text:
            self._stall = found
        self._heard_s = self.clock()

    def expired(self) -> Stall | None:
        """The stall on which to act now."""
        if self._stall is None or self.policy.hang_s == 0:
            return None
        now_s = self.clock()
        if now_s - self._heard_s > 2.0:  # the ranks go on
            self._stall = None
            return None
        limit_s = self.policy.hang_s or self._stall.limit_s
        return self._stall if now_s - self._stall.since_s >= limit_s else None

    def forget(self) -> None:
        """The program is started anew."""
        self._stall = None


def _stall(message: Mapping[str, str], now_s: float) -> Stall | None:
    """None when the message has none, or none that an agent of ours writes."""
    numbers = [message.get(name, "") for name in ("stall", "stall_ms", "usual_ms")]
    if not all(number.isdecimal() and len(number) < 12 for number in numbers):
        return None
    kind, since_ms, usual_ms = map(int, numbers)
    if kind not in list(StallKind) or kind == StallKind.NONE:
        return None
    words = message.get("stall_node", "")[:60], message.get("stall_text", "")[:160]
    times = now_s - since_ms / 1000, usual_ms / 1000
    return Stall(StallKind(kind), *words, *times, message.get("computing") == "1")
