"""How much of a run's time counts: ETTR, and what each failure cost.

Effective training time ratio as Kokolis et al. have it (arXiv 2410.21680, section II): productive
time over the time from the program's first start to its end. Not productive are the stalls of
checkpoints, and for each failure the time from the save that was restored to the moment when it
was: what was computed since, the time until the death was seen, and the start anew.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fabricctl.store.schema import CheckpointEvent, LaunchEvent
from fabricctl_analysis.job_state import JobState, Launched, Told

_DEATHS = (
    LaunchEvent.NODE_DEAD,
    LaunchEvent.RANKS_DEAD,
    LaunchEvent.HANG,
    LaunchEvent.SCRIPT_LOST,
)
_BACK = (CheckpointEvent.RESTORED, CheckpointEvent.RESTORED_SHARED, CheckpointEvent.BEGUN)


@dataclass(frozen=True)
class Loss:
    """One failure: ``from_ns`` the save that was restored, or the first start where there was none;
    ``back_ns`` when the program was there again, None: never."""

    seen_ns: int
    from_ns: int
    back_ns: int | None
    ranks: int
    road: CheckpointEvent | None
    step: int

    @property
    def lost_ns(self) -> int | None:
        return None if self.back_ns is None else max(0, self.back_ns - self.from_ns)

    @property
    def repeated_ns(self) -> int:
        """Computed since that save, and lost."""
        return max(0, self.seen_ns - self.from_ns)

    @property
    def rank_seconds(self) -> float | None:
        return None if self.lost_ns is None else self.ranks * self.lost_ns / 1e9


@dataclass(frozen=True)
class Recovery:
    """One run of a program by `fabricctl run`."""

    begin_ns: int
    end_ns: int
    losses: tuple[Loss, ...]
    stall_ns: int
    steps: int  # that counted in the end; 0: it told none

    @property
    def ettr(self) -> float | None:
        """None when a failure's cost is not known."""
        lost = [loss.lost_ns for loss in self.losses]
        known = [one for one in lost if one is not None]
        if len(known) < len(lost) or self.end_ns <= self.begin_ns:
            return None
        whole_ns = self.end_ns - self.begin_ns
        return max(0.0, 1 - (sum(known) + self.stall_ns) / whole_ns)

    @property
    def goodput(self) -> float | None:
        """Steps that counted, a second."""
        whole_ns = self.end_ns - self.begin_ns
        return self.steps / whole_ns * 1e9 if self.steps and whole_ns > 0 else None


def failures(states: Iterable[JobState | None]) -> list[LaunchEvent]:
    """What ended programs: deaths before the next start are one failure, by its first."""
    events = sorted((e for state in states if state for e in state.launches), key=lambda e: e.at_ns)
    found: list[LaunchEvent] = []
    dead = False
    for one in events:
        if one.event in _DEATHS:
            if not dead:
                found.append(one.event)
            dead = True
        elif one.event == LaunchEvent.START:
            dead = False
    return found


def recoveries(states: Iterable[JobState | None], end_ns: int) -> list[Recovery]:
    """Of each program that `fabricctl run` ran and that told its checkpoints, in their order;
    ``end_ns``: of the job."""
    known = [state for state in states if state is not None]
    launches = sorted((e for state in known for e in state.launches), key=lambda e: e.at_ns)
    told = sorted((e for state in known for e in state.told), key=lambda e: e.at_ns)
    runs: list[list[Launched]] = []
    over = True
    for event in launches:
        if event.event == LaunchEvent.START and (over or event.launch == 0):
            runs.append([])
        if runs:
            runs[-1].append(event)
        # One that ended to leave a node goes on.
        left = event.text.startswith("saved, to leave")
        over = event.event == LaunchEvent.GIVE_UP or (event.event == LaunchEvent.END and not left)
    found = []
    for nth, events in enumerate(runs):
        until_ns = runs[nth + 1][0].at_ns if nth + 1 < len(runs) else end_ns
        mine = [one for one in told if events[0].at_ns <= one.at_ns < until_ns]
        if mine:
            found.append(_recovery(events, mine, until_ns))
    return found


def _recovery(events: Sequence[Launched], told: Sequence[Told], until_ns: int) -> Recovery:
    begin_ns = events[0].at_ns
    ended = events[-1].event in (LaunchEvent.END, LaunchEvent.GIVE_UP, *_DEATHS)
    end_ns = events[-1].at_ns if ended else until_ns
    losses = []
    seen_ns: int | None = None
    for event in events:
        if event.event in _DEATHS and seen_ns is None:
            seen_ns = event.at_ns
        elif event.event == LaunchEvent.START and seen_ns is not None:
            losses.append(_loss(seen_ns, event, begin_ns, told))
            seen_ns = None
    lost = [(loss.from_ns, loss.back_ns or end_ns) for loss in losses]
    stall_ns = sum(
        one.stall_ns
        for one in told
        if one.event == CheckpointEvent.SAVED
        and not any(since < one.at_ns <= back for since, back in lost)
    )
    steps = max((one.step for one in told), default=0)
    return Recovery(begin_ns, end_ns, tuple(losses), stall_ns, steps)


def _loss(seen_ns: int, start: Launched, begin_ns: int, told: Sequence[Told]) -> Loss:
    """By the start's number: what `fabricctl run` tells of ranks that ran on comes after them."""
    back = next((one for one in told if one.launch == start.launch and one.event in _BACK), None)
    ranks = max((one.ranks for one in told), default=0)
    if back is None:
        return Loss(seen_ns, begin_ns, None, ranks, None, 0)
    saves = [
        one.at_ns
        for one in told
        if one.event == CheckpointEvent.SAVED and one.step == back.step and one.at_ns < back.at_ns
    ]
    from_ns = max(saves, default=begin_ns)
    seen_ns = min(seen_ns, back.at_ns)
    return Loss(seen_ns, from_ns, back.at_ns, back.ranks, back.event, back.step)
