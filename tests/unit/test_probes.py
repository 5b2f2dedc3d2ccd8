"""Loss is placed by the edges that lose and those that do not."""

import numpy as np
import pytest

from fabricctl.store import dtypes, schema
from fabricctl_analysis.coverage import Span
from fabricctl_analysis.evidence import Evidence
from fabricctl_analysis.probes import edges, troubles
from fabricctl_analysis.rows import Boot, NodeRows, place
from fabricctl_analysis.windows import Grid

S = 1_000_000_000
BEGIN_NS = 1_790_000_000 * S
NODES = ("n1", "n2", "n3", "n4")
# Each edge has one owner.
OWNED = {"n1": (1, 3), "n2": (2,), "n3": (0, 3), "n4": (1,)}


def node(name: str, bad: set[str], share: float, silent: bool = False) -> NodeRows:
    """Sixty seconds of probes; from 20 to 30 those of ``bad`` nodes are lost on rail 0."""
    rows = []
    for rail in range(2):
        for peer in OWNED[name]:
            made = dtypes.empty(schema.DELAY, 60)
            made["time_mono_ns"] = np.arange(60) * S
            made["rail"], made["peer"], made["inbound"], made["size_class"] = rail, peer, 0, 0
            hit = rail == 0 and bool({name, NODES[peer]} & bad)
            inside = (np.arange(60) >= 20) & (np.arange(60) < 30)
            lost = np.where(inside & hit, np.rint(90 * share), 0)
            made["sent"] = np.arange(60) * 90
            made["arrived"] = made["sent"] - np.cumsum(lost)
            rows.append(made[~inside] if silent and hit else made)
    tables = {table.name: dtypes.empty(table) for table in schema.TABLES}
    tables["delay"] = np.sort(np.concatenate(rows), order="time_mono_ns", kind="stable")
    clock = dtypes.empty(schema.CLOCK, 2)
    clock["time_mono_ns"], clock["width_ns"] = (0, 60 * S), 100
    clock["time_real_ns"] = clock["time_mono_ns"] + BEGIN_NS
    tables["clock"] = clock
    return place(name, ("r0", "r1"), [Boot(tables)])


def found(
    bad: set[str], share: float = 0.2, silent: bool = False, frozen: str = ""
) -> list[Evidence]:
    """``frozen``: a node that stood still itself, so that all probes to it were lost too."""
    grid = Grid.over(Span(BEGIN_NS, BEGIN_NS + 60 * S), S)
    hit = bad | {frozen} - {""}
    made = [(name, edges(node(name, hit, share, silent), 0)) for name in NODES]
    still = np.zeros(60, bool)
    still[18:32] = True
    return list(troubles(made, NODES, grid, {frozen: still} if frozen else {}))


@pytest.mark.parametrize("silent", [False, True])
def test_the_node_whose_edges_all_lose_is_named(silent: bool) -> None:
    (one,) = found({"n4"}, 1.0 if silent else 0.2, silent)
    assert (one.cause, one.nodes, one.rail) == ("queueing", ("n4",), 0)
    begin, end = ((at - BEGIN_NS) / S for at in (one.span.begin_ns, one.span.end_ns))
    assert begin == pytest.approx(19, abs=2) and end == pytest.approx(30, abs=2)


def test_a_whole_rail_that_loses_is_its_switch() -> None:
    (one,) = found(set(NODES))
    assert one.nodes == () and "its switch" in one.text


def test_a_healthy_rail_is_not_named() -> None:
    assert found(set()) == []
    assert found({"n1"}, share=0.02) == []


def test_a_node_that_stood_still_is_no_loss_in_the_network() -> None:
    assert found(set(), frozen="n1") == []
    (one,) = found({"n3"}, frozen="n1")
    assert one.nodes == ("n3",)


def slow(name: str, bad: set[str], late_ns: int) -> NodeRows:
    rows = node(name, set(), 0)
    table = rows.tables["delay"]
    inside = (table["time_mono_ns"] >= 20 * S) & (table["time_mono_ns"] < 30 * S)
    hit = np.array([bool({name, NODES[peer]} & bad) for peer in table["peer"]])
    table["count"] = 90
    table["p99_ns"] = np.where(inside & hit & (table["rail"] == 1), late_ns, 40_000)
    return rows


def test_a_queue_in_front_of_a_node_shows_in_its_delays() -> None:
    grid = Grid.over(Span(BEGIN_NS, BEGIN_NS + 60 * S), S)
    made = [(name, edges(slow(name, {"n2"}, 6_000_000), 0)) for name in NODES]
    (one,) = troubles(made, NODES, grid)
    assert (one.cause, one.nodes, one.rail) == ("queueing", ("n2",), 1)
    assert "queued for milliseconds on rail r1 of n2" in one.text
    made = [(name, edges(slow(name, {"n2"}, 300_000), 0)) for name in NODES]
    assert list(troubles(made, NODES, grid)) == []
