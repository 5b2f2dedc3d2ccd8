"""This node's clock: follows the answers, holds over without them, knows how far off it may be."""

import secrets
from dataclasses import dataclass, replace

import numpy as np

from fabricctl.clock import kalman
from fabricctl.clock.bounds import SIGMAS
from fabricctl.clock.edges import Model
from fabricctl.clock.solver import Answer

# How far a drift walks in a second before anything is known, and the limits of what is learned.
FIRST_WANDER_PPB = 100.0
WANDER_LIMITS_PPB = (5.0, 1_000.0)
_LEARN = 0.08  # a hop's weight for each second of it: the wander of the last minute counts
_LEARN_MOST = 0.05  # a window alone says little
SETTLED_MEASUREMENTS = 4  # in a row, before anybody may rely on the clock
SETTLED_SIGMA_NS = 1_000.0
OVERLAP = 2  # windows that each sample is in; it counts once
UNCERTAIN_WINDOWS = 4
HOLDOVER_WINDOWS = 6  # without an answer for so long (1.5 s; large jobs more) it holds over


@dataclass(frozen=True)
class HardBound:
    """theta lies within [least, most] around a line, at the instant where that begins.

    What it says later grows with what the drift may have been off by then, five times
    ``drift_sigma_ppb``, and with its walk since.
    """

    line: Model
    least_ns: float
    most_ns: float
    drift_sigma_ppb: float

    def around(self, model: Model) -> tuple[float, float, float]:
        """``(least, most, drift_ppb)`` around another line at the instant where that one
        begins, and how fast they grow: the drift's part, as the page's readers count it."""
        since_s = (model.at_job_ns - self.line.at_job_ns) * 1e-9
        off = self.line.theta_ns + self.line.drift_ppb * since_s - model.theta_ns
        apart_ppb = abs(self.line.drift_ppb - model.drift_ppb)
        return self.least_ns + off, self.most_ns + off, 5 * self.drift_sigma_ppb + apart_ppb

    def half_width_ns(self, job_ns: int, wander_ppb: float) -> float:
        age_s = abs(job_ns - self.line.at_job_ns) * 1e-9
        grown = age_s * 5 * (self.drift_sigma_ppb + wander_ppb * np.sqrt(age_s))
        return float((self.most_ns - self.least_ns) / 2 + grown)


class NodeClock:
    """One node's filter on the grid of windows, ``hop_s`` apart. What is said of a window is said
    of the instant ``reference_s`` before its end; as each sample counts in two windows, whatever
    their length, half as much is believed of each."""

    def __init__(self, hop_s: float, reference_s: float) -> None:
        self._hop_s, self.reference_s = hop_s, reference_s
        self._learn = min(_LEARN * hop_s, _LEARN_MOST)
        self._clocks = kalman.first(1)
        self._window = 0
        self._measured = -(1 << 40)  # the window that ended when an answer was last believed
        self.answered = 0  # the last window that an answer came for
        self._said: dict[int, float] = {}  # predictions that answers refer to, by window
        self.void: set[int] = (
            set()
        )  # windows reported on before it began anew: not to be said again
        self._own_base = self.base = secrets.randbits(32)  # the time that it follows: its own
        self._accepted = 0
        self._began = False
        self.settled = False
        self._settled_at = 0
        self.wander_ppb = FIRST_WANDER_PPB
        self.hard: HardBound | None = None
        self.centre_likely_ns = float("inf")
        self.centre: Model | None = (
            None  # the clock at the last window's centre: best after the fact
        )

    @property
    def model(self) -> Model:
        return Model(
            self._end_ns(self._window),
            float(self._clocks.theta_ns[0]),
            float(self._clocks.drift_ppb[0]),
        )

    @property
    def clocks(self) -> kalman.Clocks:
        """The filter's state at :attr:`model`'s instant."""
        return self._clocks

    @property
    def own(self) -> bool:
        """It follows nobody else."""
        return self.base == self._own_base

    @property
    def holding(self) -> bool:
        return self._window - self._measured >= HOLDOVER_WINDOWS

    @property
    def told(self) -> bool:
        """Whether programs are told the time: it is settled, and something is certain of it; or,
        where the others are heard of too late for that, nothing has been for 1 s."""
        if not self.settled or self.hard is None:
            return False
        certain = bool(np.isfinite(self.hard.most_ns - self.hard.least_ns))
        return certain or self.settled_windows > UNCERTAIN_WINDOWS

    @property
    def settled_windows(self) -> int:
        """For how many windows it has been settled."""
        return self._window - self._settled_at if self.settled else 0

    def _end_ns(self, window: int) -> int:
        return round(window * self._hop_s * 1e9)

    def window_at(self, node_ns: int) -> int:
        """Number of the last window that has ended."""
        since = float(self.model.since_ns(np.array([node_ns]))[0])
        return self._window + int(np.floor(since / (self._hop_s * 1e9)))

    def align(self, job_ns: int, node_ns: int) -> None:
        """Begins anew at somebody's job time, roughly: windows have the same numbers then."""
        self._clocks = replace(kalman.first(1), theta_ns=np.array([float(node_ns - job_ns)]))
        self._began = False
        self.void |= self._said.keys()
        self._said.clear()
        self._window = self.answered = int(job_ns // round(self._hop_s * 1e9))

    @property
    def fresh(self) -> bool:
        """Nothing has been measured yet."""
        return self._accepted == 0 and not self.settled

    def advance(self, window: int) -> None:
        """To the end of ``window``."""
        passed_s = (window - self._window) * self._hop_s
        if passed_s <= 0:
            return
        if self._began:
            self._clocks = kalman.predicted(self._clocks, passed_s, self.wander_ppb)
        self._began = True
        self._window = window
        if not self.settled and window - self._measured >= HOLDOVER_WINDOWS:
            self.base, self._accepted = self._own_base, 0  # whom it followed may have died
        self._said = {w: theta for w, theta in self._said.items() if w > window - 8}
        if window not in self.void:
            self._said[window] = self._at_reference()

    def _at_reference(self) -> float:
        clocks = self._clocks
        return float(clocks.theta_ns[0] - clocks.drift_ppb[0] * self.reference_s)

    def prediction(self) -> tuple[float, float]:
        """``theta`` and its variance at the current window's reference, for the report."""
        return self._at_reference(), float(self._clocks.p_theta[0])

    def bounds(self, job_ns: int) -> tuple[float, float, float]:
        """``(likely, early, late)`` in ns at an instant, as the page's readers compute them."""
        hard = self.hard
        assert hard is not None
        passed_s = (job_ns - self.model.at_job_ns) * 1e-9
        then = kalman.predicted(self._clocks, passed_s, self.wander_ppb)
        age_s = abs(job_ns - hard.line.at_job_ns) * 1e-9
        least_ns, most_ns, drift_ppb = hard.around(self.model)
        grown = age_s * (drift_ppb + 5 * self.wander_ppb * np.sqrt(age_s))
        likely = SIGMAS * float(then.sigma_ns[0])
        return likely, most_ns + grown, grown - least_ns

    def follow(self, answer: Answer) -> bool:
        """Takes an answer; False when it is old or says nothing."""
        said = self._said.get(answer.window)
        if said is None or answer.window <= self.answered or not np.isfinite(answer.theta_ns):
            return False
        if answer.base != self.base:
            # Never two times at once. What most settled on is followed by who lost touch with it.
            if self.settled and not (self.holding and answer.agreed):
                return False
            self.base, self._accepted = answer.base, 0
        self.answered = answer.window
        back_s = (self._window - answer.window) * self._hop_s + self.reference_s
        seen = np.array([said + answer.theta_ns])
        sigma = np.array([answer.sigma_ns * np.sqrt(OVERLAP)])
        back = kalman.predicted(self._clocks, -back_s, 0.0)
        expected = max(float(back.p_theta[0]), 1.0) + answer.sigma_ns**2
        self._learn_wander((float(seen[0]) - float(back.theta_ns[0])) ** 2 / expected)
        then, now = kalman.measured_before(self._clocks, back_s, seen, sigma, self.wander_ppb)
        taken = bool(then.missed[0] == 0)
        if taken:
            self._measured = self._window
        self._clocks = now
        self._accepted = self._accepted + 1 if taken else 0
        sigma_ns = float(now.sigma_ns[0])
        if not self.settled:
            self._settled_at = self._window
        sure = self._accepted >= SETTLED_MEASUREMENTS and sigma_ns < SETTLED_SIGMA_NS
        # And only once most follow the same time: of two that begin, one ends before anybody relies
        # on it.
        self.settled |= sure and answer.agreed
        centre_ns = self._end_ns(answer.window) - round(self.reference_s * 1e9)
        self.centre = Model(centre_ns, float(then.theta_ns[0]), float(then.drift_ppb[0]))
        self.centre_likely_ns = SIGMAS * float(then.sigma_ns[0])
        moved = float(then.theta_ns[0]) - float(seen[0])
        fresh = HardBound(
            self.centre,
            answer.least_ns - moved,
            answer.most_ns - moved,
            float(then.drift_sigma_ppb[0]),
        )
        self.hard = self._surer(fresh) if taken else fresh
        return taken

    def _surer(self, fresh: HardBound) -> HardBound:
        """The bound that is narrower now. Behind a full port no round trip is short any more; how
        far a clock can have drifted since the last short one says more. Not when it stepped."""
        now_ns = self._end_ns(self._window)
        known = [bound for bound in (fresh, self.hard) if bound is not None]
        return min(known, key=lambda bound: bound.half_width_ns(now_ns, self.wander_ppb))

    def _learn_wander(self, surprise: float) -> None:
        """Surprises larger than the filter expects mean a clock that wanders more, and back."""
        if self.settled:
            wander = self.wander_ppb * np.exp(self._learn * (min(surprise, 9.0) - 1))
            self.wander_ppb = float(np.clip(wander, *WANDER_LIMITS_PPB))
