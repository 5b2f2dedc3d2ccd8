"""The job clock: every node of an allocation on one time base, in software.

In a job's program::

    from fabricctl import clock
    reading = clock.now()          # .time_ns, .earliest_ns, .latest_ns, .likely_ns, .status
    job_ns, error_ns = clock.to_job(stamps_ns, "mono")

After Geng et al., "Exploiting a Natural Network Effect for Scalable, Fine-grained Clock
Synchronization" (Huygens), NSDI 2018. docs/clock.md tells how the parts fit.

Signs, defined here once and used by every module of this package:

* *node time*: a node's CLOCK_MONOTONIC_RAW, which nobody steers, less a constant chosen once so
  that it begins as CLOCK_REALTIME. *Job time*: what the nodes' clocks agree on.
* ``theta_ns`` of a node: what its node time is *ahead of* job time.
* ``offset_ns`` of an edge (a, b): ``theta_b - theta_a``; positive: b's clock is ahead of a's.
* ``drift_ppb``, ``slope_ppb``: the change of one of the above in ns per second.
* a packet from a to b bounds it from above: ``received_b - sent_a = offset + one-way delay``;
  a packet from b to a from below: ``sent_b - received_a = offset - one-way delay``.
* ``margin_ns`` of an edge: half the distance of the two bounds, which is half a round trip.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    from fabricctl.clock._page import Reading
    from fabricctl.clock.page import ClockPage

_own: "ClockPage | None" = None


def job_page() -> "ClockPage":
    """The page of the job that this program runs in.

    Raises :class:`~fabricctl.errors.ClockError` outside of a protected job.
    """
    global _own  # noqa: PLW0603 - mapped once a process
    if _own is None:
        import os
        from pathlib import Path

        from fabricctl.clock.page import ClockPage
        from fabricctl.errors import ClockError

        directory = os.environ.get("FABRIC_JOB_DIR")
        if not directory:
            raise ClockError("clock: not in a protected job: FABRIC_JOB_DIR is not set")
        _own = ClockPage(Path(directory) / "clock")
    return _own


def now(within_ns: int | None = None) -> "Reading":
    """Job time now; see :meth:`fabricctl.clock.page.ClockPage.now`."""
    return (_own or job_page()).now(within_ns)


def to_job(stamps: "ArrayLike", clock: str) -> "tuple[NDArray[np.int64], NDArray[np.float64]]":
    """Past stamps in job time; see :meth:`fabricctl.clock.page.ClockPage.to_job`."""
    return job_page().to_job(stamps, clock)


def compare(a: "Reading", b: "Reading") -> int:
    """-1: a was before b, 1: after, 0: nobody can tell."""
    if a.latest_ns < b.earliest_ns:
        return -1
    return 1 if a.earliest_ns > b.latest_ns else 0
