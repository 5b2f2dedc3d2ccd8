"""When a rail was down: events, samples, and the kernel's counter for what neither told."""

from collections.abc import Sequence

import numpy as np

from fabricctl.store import dtypes, schema
from fabricctl.store.schema import LinkEvent
from fabricctl_analysis.links import LinkHistory, Missed, link_history

S = 1_000_000_000
UNKNOWN = 0xFFFF_FFFF

Sample = tuple[float, int, int]  # at s, carrier, changes
Event = tuple[float, LinkEvent, int]


def history(
    samples: Sequence[Sample] = (), events: Sequence[Event] = (), restarts: Sequence[float] = ()
) -> LinkHistory:
    rail, event = (
        dtypes.empty(schema.RAIL, len(samples)),
        dtypes.empty(schema.LINK_EVENT, len(events)),
    )
    for row, (_, carrier, changes) in zip(rail, samples, strict=True):
        row["carrier"], row["carrier_changes"] = carrier, changes
    for row, (_, kind, changes) in zip(event, events, strict=True):
        row["event"], row["carrier_changes"] = kind, changes
    return link_history(ns(s[0] for s in samples), rail, ns(e[0] for e in events), event,
                        ns(restarts).tolist())  # fmt: skip


def ns(seconds) -> np.ndarray:
    return np.array([round(s * S) for s in seconds], dtype=np.int64)


def steady(begin: int, end: int, carrier: int = 1, changes: int = 2) -> list[Sample]:
    return [(float(at), carrier, changes) for at in range(begin, end)]


def test_a_rail_that_stays_up_was_never_down() -> None:
    found = history(steady(0, 10))
    assert found.downs == () and found.missed == ()
    assert found.changes == 0 and found.measured


def test_events_give_an_outage_between_two_samples_to_the_nanosecond() -> None:
    found = history(
        [*steady(0, 5), *steady(5, 9, changes=4)],
        [(4.2, LinkEvent.CARRIER_DOWN, 3), (4.3, LinkEvent.CARRIER_UP, 4)],
    )
    (down,) = found.downs
    assert (down.begin_ns, down.end_ns) == (4_200_000_000, 4_300_000_000)
    assert (down.begin_error_ns, down.end_error_ns) == (0, 0)
    assert (down.begin_source, down.end_source) == ("event", "event")
    assert found.missed == () and found.changes == 2


def test_samples_alone_bound_an_outage() -> None:
    found = history([*steady(0, 3), *steady(3, 5, 0, 3), *steady(5, 9, 1, 4)])
    (down,) = found.downs
    assert (down.begin_ns, down.begin_error_ns) == (3 * S, 1 * S)
    assert (down.end_ns, down.end_error_ns) == (5 * S, 1 * S)
    assert found.missed == ()


def test_a_sample_that_beats_its_event_keeps_the_sample_s_bound() -> None:
    """The kernel may hold a message back: what comes after the sample says nothing of before."""
    found = history([(0, 1, 2), (1, 0, 3), (2, 0, 3)], [(1.4, LinkEvent.CARRIER_DOWN, 3)])
    (down,) = found.downs
    assert (down.begin_ns, down.begin_error_ns) == (1 * S, 1 * S)


def test_a_counter_that_moved_on_tells_of_changes_nobody_saw() -> None:
    found = history([*steady(0, 3), *steady(3, 9, changes=6)])
    assert found.downs == ()
    assert found.missed == (Missed(2 * S, 3 * S, 4),)
    assert found.changes == 4


def test_a_counter_that_moved_by_three_shows_one_change_and_misses_two() -> None:
    found = history([*steady(0, 3), *steady(3, 9, carrier=0, changes=5)])
    assert len(found.downs) == 1
    assert found.missed == (Missed(2 * S, 3 * S, 2),)


def test_a_loss_and_return_told_at_one_instant_have_no_known_length() -> None:
    found = history(
        steady(0, 5), [(5.5, LinkEvent.CARRIER_DOWN, 3), (5.5, LinkEvent.CARRIER_UP, 4)]
    )
    (down,) = found.downs
    assert down.begin_ns == down.end_ns == 5_500_000_000
    assert down.begin_error_ns == 1_500_000_000  # since the sample at 4 s
    assert found.missed == ()


def test_a_rail_without_carrier_at_the_first_sample_was_down_before() -> None:
    found = history([*steady(0, 3, carrier=0), *steady(3, 5, changes=3)])
    assert found.downs[0].begin_source == "edge"


def test_a_rail_that_never_comes_back_has_no_end() -> None:
    found = history(steady(0, 5), [(4.5, LinkEvent.CARRIER_DOWN, 3)])
    assert found.downs[0].end_ns is None


def test_a_rail_switched_off_is_down_until_carrier_is_back() -> None:
    found = history(
        steady(0, 3),
        [
            (3.0, LinkEvent.ADMIN_DOWN, 2),
            (3.0, LinkEvent.CARRIER_DOWN, 3),
            (5.0, LinkEvent.ADMIN_UP, 3),
            (6.0, LinkEvent.CARRIER_UP, 4),
        ],
    )
    (down,) = found.downs
    assert down.cause == "admin"
    assert (down.begin_ns, down.end_ns) == (3 * S, 6 * S)


def test_a_removed_interface_is_down_and_its_new_counter_no_change() -> None:
    found = history(
        steady(0, 3, changes=7),
        [
            (3.0, LinkEvent.REMOVED, UNKNOWN),
            (5.0, LinkEvent.ADDED, 0),
            (6.0, LinkEvent.CARRIER_UP, 1),
        ],
    )
    (down,) = found.downs
    assert (down.cause, down.begin_ns, down.end_ns) == ("removed", 3 * S, 6 * S)
    assert found.missed == ()


def test_what_one_agent_was_told_does_not_bind_the_next() -> None:
    """An ADMIN_UP while no agent ran was heard by nobody."""
    found = history(
        [*steady(0, 3), *steady(10, 12)], [(3.0, LinkEvent.ADMIN_DOWN, 2)], restarts=[0.0, 9.5]
    )
    (down,) = found.downs
    assert (down.end_ns, down.end_error_ns) == (10 * S, 7 * S)


def test_carrier_without_the_counter_still_tells_of_outages() -> None:
    found = history([(0, 1, UNKNOWN), (1, 0, UNKNOWN), (2, 1, UNKNOWN)])
    assert len(found.downs) == 1
    assert found.changes is None


def test_nothing_measured_is_not_a_rail_that_was_up() -> None:
    found = history([(0, 255, UNKNOWN), (1, 255, UNKNOWN)])
    assert not found.measured
    assert found.changes is None


def test_unknown_kinds_of_event_are_passed_over() -> None:
    rail, event = dtypes.empty(schema.RAIL, 0), dtypes.empty(schema.LINK_EVENT, 1)
    event["event"] = 200
    assert not link_history(ns([]), rail, ns([1]), event).measured
