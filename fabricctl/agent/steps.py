"""Which steps of the job run here, and whether the plugin was there for each."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from fabricctl.store.schema import StepEvent

NAME = re.compile(r"[A-Za-z0-9_+]{1,23}")
# The plugin makes its mark while the step daemon sets the step up, before its tasks.
MARK_WAIT_S = 3.0
# Slurm's own step, without tasks of the user.
UNMARKED = ("extern",)


_FAMILY = re.compile(r"(array|het):([1-9][0-9]{0,9})[_+]([0-9]{1,10})")


def family(marks: Iterable[str]) -> dict[str, str]:
    """Attributes of the trace from the plugin's marks ``array:<job>_<task>``,
    ``het:<job>+<offset>``; others are passed over."""
    found: dict[str, str] = {}
    for match in filter(None, map(_FAMILY.fullmatch, sorted(marks))):
        kind, job, number = match.groups()
        member = "array_task" if kind == "array" else "het_offset"
        found.update({f"{kind}_job": job, member: number})
    return found


@dataclass
class StepTracker:
    """Marks of the plugin and step daemons of the process table, turned into events.

    A step begins with the first sign of it and ends when its daemon is gone. A step so short
    that its daemon was never seen ends when a scan after its mark does not find it. Where an
    earlier agent of the allocation has looked (``resumed``), what the first scan does not find has
    ended by now: that one may have told of it, or may have died before.
    """

    resumed: bool = False
    unplugged: set[str] = field(default_factory=set)  # steps without a mark, ever seen
    _begun: set[str] = field(default_factory=set)
    _running: set[str] = field(default_factory=set)
    _unmarked_since_s: dict[str, float] = field(default_factory=dict)

    def update(
        self, marks: Iterable[str], stepds: Iterable[str], now_s: float
    ) -> list[tuple[str, StepEvent]]:
        """Events since the last call, in order; ``marks`` and ``stepds`` are names of steps."""
        marked = {name for name in marks if NAME.fullmatch(name)}
        living = set(stepds)
        events: list[tuple[str, StepEvent]] = []
        for step in sorted((marked | living) - self._begun):
            self._begun.add(step)
            if self.resumed and step not in living:
                events.append((step, StepEvent.END))
                continue
            self._running.add(step)
            events.append((step, StepEvent.BEGIN))
        self.resumed = False
        fresh = {step for step, _ in events}
        for step in sorted(self._running - living - fresh):
            self._running.remove(step)
            events.append((step, StepEvent.END))
        self._watch_marks(marked, living, now_s)
        return events

    def finish(self) -> list[tuple[str, StepEvent]]:
        """What is running ends now."""
        ended = [(step, StepEvent.END) for step in sorted(self._running)]
        self._running.clear()
        return ended

    def _watch_marks(self, marked: set[str], living: set[str], now_s: float) -> None:
        for step in living - marked:
            if step in UNMARKED:
                continue
            if now_s - self._unmarked_since_s.setdefault(step, now_s) >= MARK_WAIT_S:
                self.unplugged.add(step)
        self.unplugged -= marked
