"""Which nodes solve: two at a time, the first of the node list that answer.

Every node chooses for itself. Nothing needs to be agreed on: two solvers that get the same reports
find the same answers, and one that most nodes do not report to gives none.
"""

SOLVERS = 2
ASKED = 4  # so many at most are asked at once while it is not known who solves
SILENT_WINDOWS = 4  # without an answer: asked no more, for a while that doubles each time
FIRST_PAUSE, LONGEST_PAUSE = 8, 480  # windows: 2 s to 2 min


class SolverChoice:
    """Counts in windows."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._asked_since: dict[int, int] = {}
        self._answered: dict[int, int] = {}
        self._pause: dict[int, int] = {}
        self._paused_until: dict[int, int] = {}

    def answered(self, node: int, window: int) -> None:
        self._answered[node] = window
        self._pause.pop(node, None)
        self._paused_until.pop(node, None)

    def first(self, window: int) -> int | None:
        """The first of the list that answers; beginners follow nobody else. While the solvers
        know of different beginners, their first job times differ."""
        return min((node for node in self._answered if self._answers(node, window)), default=None)

    def choose(self, window: int, dead: frozenset[int]) -> list[int]:
        """Whom to report this window to.

        The first of the list that answer, and before them those not heard of, which may be about
        to: nobody who works is given up for one who may not.
        """
        chosen: list[int] = []
        working = 0
        for node in range(self._nodes):
            if working == SOLVERS or len(chosen) == ASKED:
                break
            if node in dead or self._is_paused(node, window):
                continue
            chosen.append(node)
            working += self._answers(node, window)
        if not working:
            # Nobody answers, perhaps the network is bad: all are worth asking, in turn.
            rest = [n for n in range(self._nodes) if n not in dead and n not in chosen]
            rest.sort(key=lambda node: self._paused_until.get(node, window))
            chosen += rest[: ASKED - len(chosen)]
        self._asked_since = {node: self._asked_since.get(node, window) for node in chosen}
        return chosen

    def _answers(self, node: int, window: int) -> bool:
        return window - self._answered.get(node, -(1 << 40)) <= SILENT_WINDOWS

    def _is_paused(self, node: int, window: int) -> bool:
        if window < self._paused_until.get(node, window):
            return True
        asked = self._asked_since.get(node)
        if asked is None or window - asked <= SILENT_WINDOWS or self._answers(node, window):
            return False
        pause = self._pause.get(node, FIRST_PAUSE)
        self._paused_until[node] = window + pause
        self._pause[node] = min(2 * pause, LONGEST_PAUSE)
        return True
