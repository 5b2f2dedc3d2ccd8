"""Placement: what a job's place costs, spares apart from it, and a topology from round trips."""

import itertools
import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli
from fabricctl.errors import FabricError
from fabricctl.fleet import place
from fabricctl.fleet.audit import report
from fabricctl.fleet.audit.pairwise import Link
from fabricctl.slurm import topology
from fabricctl.slurm.topology import parse
from tests.support.fakeslurm import FakeSlurm, job, node

TREE = parse(
    "SwitchName=a Level=0 LinkSpeed=1 Nodes=n[1-4]\n"
    "SwitchName=b Level=0 LinkSpeed=1 Nodes=n[5-8]\n"
    "SwitchName=c Level=0 LinkSpeed=1 Nodes=n[9-10]\n"
    "SwitchName=top Level=1 LinkSpeed=1 Nodes=n[1-10] Switches=a,b,c\n"
)
NAMES = [f"n{number}" for number in range(1, 11)]


def test_what_a_place_costs_is_held_against_the_best_that_there_is() -> None:
    spread = place.lie(["n1", "n2", "n5", "n9"], TREE)
    assert (len(spread.leaves), spread.fewest) == (3, 1)
    assert spread.across == pytest.approx(5 / 6) and spread.across_best == 0
    whole = place.lie(["n1", "n2", "n3", "n4"], TREE)
    assert (len(whole.leaves), whole.across) == (1, 0)
    six = place.lie(NAMES[:6], TREE)
    assert six.fewest == 2 and six.across == six.across_best
    alone = place.lie(["n1"], TREE)
    assert alone.across == 0 and place.lie(["x1", "x2"], ()).leaves == {"": ("x1", "x2")}


def test_spares_lie_in_failure_groups_that_hold_least_of_the_job() -> None:
    assert place.spares(["n1", "n2", "n5"], ["n3", "n4", "n6", "n9"], TREE, 2) == ["n9", "n6"]
    # Two groups without any of it: one from each.
    assert place.spares(["n1"], ["n5", "n6", "n9", "n10"], TREE, 2) == ["n5", "n9"]
    assert place.spares(["n1"], ["n1"], TREE, 2) == []


def test_the_hint_asks_for_as_few_switches_as_the_free_nodes_need() -> None:
    assert place.hint(4, NAMES, TREE) == (1, 4)
    assert place.hint(5, NAMES, TREE) == (2, 4)
    assert place.hint(3, ["n1", "n2", "n5"], TREE) == (2, 2)
    assert place.hint(11, NAMES, TREE) is None
    assert place.hint(1, NAMES, ()) is None


def measured(seed: int, leaves: list[list[str]], far: float = 2.0) -> list[Link]:
    chance = random.Random(seed)
    leaf = {name: at for at, group in enumerate(leaves) for name in group}
    return [
        Link(a, b, "r0", int(1500 * (1 if leaf[a] == leaf[b] else far) * chance.uniform(1, 1.15)))
        for a, b in itertools.combinations(sorted(leaf), 2)
    ]


LEAVES = [[f"m{at:02}" for at in range(at0, at0 + 8)] for at0 in (0, 8, 16, 24)]


@pytest.mark.parametrize("seed", range(10))
def test_switches_are_found_in_round_trips_and_none_where_there_is_one(seed: int) -> None:
    def rtts(links: list[Link]) -> list[tuple[str, str, float]]:
        return [(x.node, x.peer, float(x.rtt_ns or 0)) for x in links]

    assert place.groups_of(rtts(measured(seed, LEAVES))) == LEAVES
    assert place.groups_of(rtts(measured(seed, LEAVES, far=1.0))) is None
    assert place.groups_of([]) is None
    # One slow pair is no topology.
    one = [*rtts(measured(seed, LEAVES, far=1.0)), ("z1", "m00", 9000.0), ("z1", "z2", 1500.0)]
    assert place.groups_of(one) in (None, [sorted(n for g in LEAVES for n in g), ["z1", "z2"]])


def test_the_file_is_one_that_slurm_and_our_inventory_read(tmp_path: Path) -> None:
    given = report.document([], [n for g in LEAVES for n in g], "lab", 1, 2,
                            links=measured(1, LEAVES))  # fmt: skip
    (tmp_path / "full.json").write_text(json.dumps(given))
    done = CliRunner().invoke(cli, ["place", "--topology", str(tmp_path / "full.json")])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()[1:]
    assert lines[0] == "SwitchName=leaf1 Nodes=m[00-07]"
    assert lines[-1] == "SwitchName=spine Switches=leaf[1-4]"
    (tmp_path / "quick.json").write_text(json.dumps(report.document([], ["n1"], "lab", 1, 2)))
    done = CliRunner().invoke(cli, ["place", "--topology", str(tmp_path / "quick.json")])
    assert isinstance(done.exception, FabricError) and "not of an audit --full" in str(
        done.exception
    )


def test_the_command_explains_a_job_and_says_what_to_ask_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slurm = FakeSlurm({name: node(name) for name in NAMES}, [job(7, nodes="n[1-2],n5"),
                                                             job(8, "PENDING")])  # fmt: skip
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: slurm)
    monkeypatch.setattr(topology, "switches", lambda: TREE)
    done = CliRunner().invoke(cli, ["place", "7", "--spares", "1"])
    assert done.exit_code == 0, done.output
    assert "2 switches, 1 would do; 67 % of its pairs of nodes cross them" in done.stdout
    assert "spares in other failure groups: n9" in done.stdout
    said = json.loads(CliRunner().invoke(cli, ["place", "--nodes", "5", "--json"]).stdout)
    assert said["options"] == ["-N5", "--fabric-resilience", "--switches=2@10:00"]
    for wrong in (["place"], ["place", "7", "--nodes", "2"], ["place", "8"], ["place", "9"]):
        assert isinstance(CliRunner().invoke(cli, wrong).exception, FabricError)
    # Another user's job is not explained to everybody.
    monkeypatch.setattr("os.getuid", lambda: __import__("pwd").getpwnam("nobody").pw_uid)
    done = CliRunner().invoke(cli, ["place", "7"])
    assert "ask them, or an operator" in str(done.exception)
