"""From the events of link failover to what the report says of it."""

from datetime import UTC
from pathlib import Path

from fabricctl.store.schema import PathEvent, PathLevel, PathReason
from fabricctl_analysis.build import report_of
from fabricctl_analysis.findings import findings
from fabricctl_analysis.model import Report
from fabricctl_analysis.moves import Incident
from fabricctl_analysis.when import When
from tests.support.traces import Moved, Plan, write

MS = 1_000_000
ALL = ("n1", "n2", "n3", "n4")


def report(plan: Plan, tmp_path: Path) -> Report:
    return report_of(write(plan, tmp_path / plan.user))


def sentences(made: Report) -> list[str]:
    found = findings(made, When(made.whole, UTC))
    return [one.text for one in found if one.kind != "saved"]


def saved(made: Report) -> list[str]:
    found = findings(made, When(made.whole, UTC))
    return [one.text for one in found if one.kind == "saved"]


def only(made: Report) -> Incident:
    (incident,) = made.moves.incidents
    return incident


def test_both_ends_of_a_cut_are_one_incident_with_its_times(tmp_path: Path) -> None:
    made = report(
        Plan(
            moved=[
                Moved("n2", "n1", 0, 20.0, 20.001, 20.011, 24.0, PathReason.CARRIER),
                Moved("n1", "n2", 0, 20.0, 20.004, 20.016, 24.2, PathReason.TOLD),
            ],
            path_events=[("n2", 20.5, PathEvent.CAUSE, {"rail": 0, "text": b"own_port"})],
        ),
        tmp_path,
    )
    one = only(made)
    assert (one.nodes, one.pairs, one.reasons) == (("n1", "n2"), 1, ("carrier",))
    assert (one.cause, one.cause_nodes) == ("own_port", ("n2",))
    assert one.moved_ns == (1 * MS, 4 * MS)
    assert (one.waited_ns, one.streams) == (16 * MS, 4)
    assert sentences(made) == [
        "Rail r0 lost its carrier between n[1-2] at 14:13:40.000 (the port of n2): moved after "
        "4 ms, 4 streams ran again after 16 ms, used again after 4.20 s."
    ]


def test_what_failover_saved_is_the_time_in_which_nothing_would_have_passed(tmp_path: Path) -> None:
    moved = [
        Moved("n1", "n2", 0, 20.0, 20.004, 20.016, 24.0, PathReason.CARRIER),
        Moved("n3", "n4", 1, 22.0, 22.004, 22.020, 25.0),
        Moved("n1", "n3", 1, 40.0, 40.004, 40.020, 45.0, PathReason.SLOW),
    ]
    (told,) = saved(report(Plan(moved=moved), tmp_path))
    assert told.startswith(
        "Link failover saved up to 19.9 node-s: rails without carrier, or silent, were left for "
        "5.00 s, and what had used them waited 36 ms in all. The network cost 0.00 node-s all the "
        "same; 0.00 node-s were lost to hosts"
    )


def test_where_nothing_had_waited_nothing_was_saved(tmp_path: Path) -> None:
    assert saved(report(Plan(moved=[Moved("n1", "n2", 0, 20.0, 20.004)]), tmp_path)) == []


def test_what_waits_on_the_way_back_is_not_counted_to_the_fault(tmp_path: Path) -> None:
    moved = [Moved("n1", "n2", 0, 20.0, 20.004, 20.016, 24.0)]
    late = {"peer": b"n2", "rail": 0, "streams": 2}
    times = {"moved_mono_ns": 5_023_999_900_000, "recovered_mono_ns": 5_024_008_000_000}
    more = [("n1", 24.009, PathEvent.RECOVERED, {**late, **times})]
    assert only(report(Plan(moved=moved, path_events=more), tmp_path)).waited_ns == 16 * MS


def test_a_dead_switch_is_one_incident_of_all_pairs(tmp_path: Path) -> None:
    moved = [Moved(a, b, 1, 20 + ALL.index(a) / 50, 20.1) for a in ALL for b in ALL if a != b]
    told = [(node, 21.0, PathEvent.CAUSE, {"rail": 1, "text": b"own_port"}) for node in ALL[:1]]
    told += [(node, 21.5, PathEvent.CAUSE, {"rail": 1, "text": b"switch"}) for node in ALL]
    made = report(Plan(moved=moved, path_events=told), tmp_path)
    one = only(made)
    assert (one.nodes, one.pairs, one.cause, one.end_ns) == (ALL, 6, "switch", None)
    assert "(the switch)" in sentences(made)[0] and "not used again" in sentences(made)[0]


def test_faults_apart_in_time_or_rail_stay_apart(tmp_path: Path) -> None:
    moved = [
        Moved("n1", "n2", 0, 10, 10.01, None, 12),
        Moved("n1", "n2", 0, 20, 20.01, None, 22),
        Moved("n1", "n2", 1, 20, 20.01, None, 22),
    ]
    made = report(Plan(moved=moved), tmp_path)
    assert len(made.moves.incidents) == 3


def test_a_flapping_rail_is_one_sentence_and_many_rows(tmp_path: Path) -> None:
    moved = [Moved("n1", "n2", 0, at, at + 0.01, at + 0.02, at + 2) for at in range(5, 40, 5)]
    made = report(Plan(moved=moved), tmp_path)
    assert len(made.moves.incidents) == 7
    (sentence,) = sentences(made)
    assert sentence.startswith("Rail r0 was left 7 times between n[1-2]")
    assert sentence.endswith("moved within 10 ms, streams ran again within 20 ms.")


def test_clocks_of_nodes_apart_are_set_right_by_the_job_clock(tmp_path: Path) -> None:
    """n2's CLOCK_REALTIME is 1 ms ahead of job time (tests/support/traces.py)."""
    moved = [Moved("n1", "n2", 0, 20.0, 20.002), Moved("n2", "n1", 0, 20.001, 20.004)]
    without = only(report(Plan(moved=moved), tmp_path))
    with_clock = report(Plan(moved=moved, clock_from_s=1.0, job=4712), tmp_path)
    assert without.moved_ns == (2 * MS, 4 * MS)
    assert only(with_clock).moved_ns == (2 * MS, 3 * MS)
    assert with_clock.moves.on_job_clock


def test_a_frozen_host_is_told_as_that(tmp_path: Path) -> None:
    plan = Plan(
        path_events=[
            (node, at, event, {"peer": b"n3"})
            for node in ("n1", "n2")
            for at, event in ((30.0, PathEvent.STALLED), (32.5, PathEvent.BACK))
        ]
    )
    assert sentences(report(plan, tmp_path)) == [
        "n3 was silent on every rail for 2.50 s from 14:13:50.000: a host that stood still, "
        "not a link."
    ]


def off(tmp_path: Path, **why: str) -> list[tuple[str, str]]:
    events = [(node, 1.0, PathEvent.OFF, {"text": text.encode()}) for node, text in why.items()]
    made = report(Plan(path_events=events), tmp_path)
    return [(one.severity, one.text) for one in findings(made, When(made.whole, UTC))]


def test_where_nothing_is_moved_is_told_with_the_reason(tmp_path: Path) -> None:
    assert off(tmp_path, n2="routing rules: Operation not permitted") == [
        ("warning", "Traffic of n2 is not moved between rails: routing rules: Operation not "
         "permitted.")
    ]  # fmt: skip


def test_a_site_of_one_rail_is_told_so_once_and_quietly(tmp_path: Path) -> None:
    few = {node: f"{node} has 1 rail with an address, two are needed" for node in ALL}
    assert off(tmp_path, **few) == [
        ("info", "Traffic of n[1-4] is not moved between rails: fewer than two rails have an "
         "address there.")
    ]  # fmt: skip


def test_a_drained_rail_is_no_fault(tmp_path: Path) -> None:
    moved = [
        Moved("n1", "n2", 0, 20, 20.01, None, 30, PathReason.DRAINED, PathLevel.POOR),
        Moved("n2", "n1", 0, 20.01, 20.02, None, 30, PathReason.TOLD, PathLevel.POOR),
    ]
    made = report(Plan(moved=moved), tmp_path)
    (finding,) = findings(made, When(made.whole, UTC))
    assert (finding.severity, "taken out by hand" in finding.text) == ("info", True)


def test_a_share_and_what_queues_made_of_it_is_told(tmp_path: Path) -> None:
    share = {"text": b"60 to 100 % of 2 rails, class normal"}
    slow = {"rail": 0, "text": b"packets wait 900 us"}
    slower = {"rail": 0, "text": b"packets wait 3200 us"}
    round_it = {"peer": b"n2", "rail": 1}
    made = report(
        Plan(
            path_events=[
                *((node, 1.0, PathEvent.SHARE, share) for node in ALL),
                ("n1", 10.0, PathEvent.PACED, slow),
                ("n1", 30.0, PathEvent.PACED, slower),
                (
                    "n1",
                    20.0,
                    PathEvent.REROUTED,
                    {**round_it, "text": b"away: packets wait 7000 us"},
                ),
                ("n1", 26.5, PathEvent.REROUTED, {**round_it, "text": b"back: packets wait 0 us"}),
                (
                    "n1",
                    40.0,
                    PathEvent.REROUTED,
                    {**round_it, "text": b"away: packets wait 8000 us"},
                ),
            ]
        ),
        tmp_path,
    )
    assert set(sentences(made)) == {
        "On n[1-4] the job had 60 to 100 % of 2 rails, class normal.",
        "n1 slowed down on rail r0 2 times (14:13:30.000 to 14:13:50.000): its packets waited up "
        "to 3.2 ms in the network.",
        "Streams of n1 to n2 left rail r1 at 14:13:40.000 for 6.50 s, round a queue in which "
        "packets waited 7 ms.",
        "Streams of n1 to n2 left rail r1 at 14:14:00.000 to the end, round a queue in which "
        "packets waited 8 ms.",
    }


def test_a_share_that_could_not_be_had_is_a_warning(tmp_path: Path) -> None:
    text = b"no share of r0: the site configured a queue there"
    plan = Plan(path_events=[(node, 1.0, PathEvent.TROUBLE, {"text": text}) for node in ALL[:2]])
    made = report(plan, tmp_path)
    (one,) = findings(made, When(made.whole, UTC))
    assert one.severity == "warning"
    assert one.text == ("On n[1-2] the job had no share of r0: the site configured a queue there.")
