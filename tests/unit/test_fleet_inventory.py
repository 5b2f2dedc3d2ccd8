"""The inventory: facts, history, deviations, and the forms that others read and write."""

import json
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli
from fabricctl.errors import DataError, NotFoundError
from fabricctl.fleet import changes
from fabricctl.fleet import lines as lines_module
from fabricctl.fleet.inventory import collect, formats
from fabricctl.fleet.inventory.compare import against_declared, against_peers
from fabricctl.fleet.inventory.facts import gather
from fabricctl.fleet.inventory.store import Inventory
from tests.support.fakeslurm import FakeSlurm, node


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_facts_of_a_node_with_hcas_and_gpus(tmp_path: Path) -> None:
    gpu = (
        "Model: \t\t NVIDIA H200\nGPU UUID: \t GPU-1\nVideo BIOS: \t 96.00\nGPU Firmware: \t 570.1"
    )
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": "processor : 0\nphysical id : 0\nmodel name : X 1\n\n"
            "processor : 1\nphysical id : 1\nmodel name : X 1",
            "proc/meminfo": "MemTotal:  527950000 kB\nHugePages_Total: 4",
            "sys/class/dmi/id/bios_version": "2.1",
            "sys/class/net/ib0/type": "32",
            "sys/class/net/ib0/carrier": "1",
            "sys/class/net/ib0/mtu": "4092",
            "sys/class/net/ib0/speed": "400000",
            "sys/class/net/lo/type": "772",
            "sys/class/net/ib0/address": "00:aa",
            "sys/class/net/ib0/device/x": "",
            "sys/class/infiniband/mlx5_0/fw_ver": "28.39.1002",
            "sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE",
            "sys/class/infiniband/mlx5_0/ports/1/rate": "400 Gb/sec (4X NDR)",
            "proc/driver/nvidia/gpus/0000:17:00.0/information": gpu,
            "sys/block/nvme0n1/size": "7501476528",
            "sys/block/nvme0n1/device/model": "SSD",
            "sys/block/loop0/size": "8",
        },
    )
    facts = gather(root)
    assert facts["cpu.sockets"] == facts["cpu.threads"] == "2"
    assert (facts["memory.gib"], facts["bios.version"]) == ("503", "2.1")
    assert (facts["nic.ib0.speed_mbit"], facts["nic.ib0.link"]) == ("400000", "up")
    assert facts["hca.mlx5_0.firmware"] == "28.39.1002"
    assert facts["hca.mlx5_0.port1.state"] == "ACTIVE"
    assert (facts["gpu.count"], facts["gpu.0.model"]) == ("1", "NVIDIA H200")
    assert facts["disk.nvme0n1.gib"] == "3576"
    assert not [key for key in facts if "loop0" in key or ".lo." in key]
    assert collect.checked(facts, "n1") == facts


def test_what_cannot_be_read_is_absent_not_empty(tmp_path: Path) -> None:
    assert set(gather(tmp_path)) == {"kernel.release"}


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return Inventory(tmp_path / "fleet" / "inventory.db")


def test_every_value_that_there_was_is_kept_with_its_times(inventory: Inventory) -> None:
    assert inventory.record("n1", {"bios.version": "1", "gpu.count": "8"}, 100) == 2
    assert inventory.record("n1", {"bios.version": "1", "gpu.count": "8"}, 200) == 0
    assert inventory.record("n1", {"bios.version": "2"}, 300) == 2
    history = inventory.history("n1")
    assert [(s.key, s.value, s.first_real_s, s.last_real_s, s.gone_real_s) for s in history] == [
        ("bios.version", "1", 100, 200, 300),
        ("gpu.count", "8", 100, 200, 300),
        ("bios.version", "2", 300, 300, None),
    ]
    assert set(inventory.now()["n1"]) == {"bios.version"}
    inventory.forget(["n1"])
    assert (inventory.now(), inventory.visits()) == ({}, {})


def test_two_programs_write_at_once_and_a_second_open_finds_all(tmp_path: Path) -> None:
    first, second = Inventory(tmp_path / "i.db"), Inventory(tmp_path / "i.db")
    for number in range(20):
        (first, second)[number % 2].record(f"n{number}", {"a.b": str(number)})
    with Inventory(tmp_path / "i.db") as third:
        assert len(third.now()) == 20


def test_a_file_that_is_no_data_base_is_said(tmp_path: Path) -> None:
    (tmp_path / "i.db").write_text("this is not a data base, and long enough to be looked at" * 9)
    with pytest.raises(DataError, match="not one of ours"):
        Inventory(tmp_path / "i.db")


def test_missing_different_and_never_visited_are_three_things(inventory: Inventory) -> None:
    inventory.record("n1", {"gpu.count": "8", "bios.version": "1"}, 100)
    inventory.record("n1", {"bios.version": "2"}, 300)
    declared = {"n1": {"gpu.count": "8", "bios.version": "1"}, "n2": {"gpu.count": "8"}}
    found = against_declared(declared, inventory.now(), {("n1", "gpu.count"): 300})
    assert [(d.node, d.key, d.kind, d.found, d.since_real_s) for d in found] == [
        ("n1", "gpu.count", "missing", None, 300),
        ("n1", "bios.version", "different", "2", 300),
        ("n2", "", "not visited", None, None),
    ]


def test_where_three_quarters_agree_the_other_is_told(inventory: Inventory) -> None:
    for number in range(1, 9):
        firmware = "27" if number == 3 else "28"
        split = "a" if number % 2 else "b"
        facts = {"hca.m.firmware": firmware, "x.y": split, "system.serial": str(number)}
        inventory.record(f"n{number}", facts, 100)
    names = [f"n{number}" for number in range(1, 9)]
    (found,) = against_peers({"a": names}, inventory.now())
    assert (found.node, found.key, found.found, found.expected, found.source) == (
        "n3", "hca.m.firmware", "27", "28", "7 of 8 peers",
    )  # fmt: skip
    assert against_peers({"a": ["n1", "n3"]}, inventory.now()) == []


VALUES = {
    "n1": {"bios.version": "2.1", "nic.r0.mtu": "9000", "nic.r0.mac": "02:00", "gpu.count": "8",
           "nic.r0.speed_mbit": "100000", "system.serial": "S1", "system.product": "P"},
    "n2": {"bios.version": "2.1", "slurm.switch": "leaf1"},
    "n3": {"bios.version": "2.1", "slurm.switch": "leaf1"},
}  # fmt: skip


@pytest.mark.parametrize("form", ["yaml", "csv", "netbox"])
def test_what_is_written_is_read_again(form: str) -> None:
    assert formats.READERS[form](formats.WRITERS[form](VALUES)) == VALUES


def test_nodes_that_are_alike_are_one_entry_of_yaml_and_keys_may_nest() -> None:
    assert "n[2-3]:" in formats.write_yaml(VALUES)
    text = "nodes:\n  n[1-2]:\n    nic: {r0: {mtu: 9000}}\n  n2:\n    nic.r0.mtu: 1500\n"
    assert formats.read_yaml(text) == {"n1": {"nic.r0.mtu": "9000"}, "n2": {"nic.r0.mtu": "1500"}}


def test_netbox_has_serial_model_and_interfaces_in_its_own_fields() -> None:
    device = json.loads(formats.write_netbox(VALUES))[0]
    assert (device["serial"], device["device_type"]["model"]) == ("S1", "P")
    (port,) = device["interfaces"]
    assert port == {"name": "r0", "mtu": 9000, "mac_address": "02:00", "speed": 100_000_000}
    assert device["custom_fields"]["fabricctl"] == {"bios.version": "2.1", "gpu.count": "8"}


def test_groups_name_what_nodes_fall_with() -> None:
    given = {
        "n1": {"slurm.switch": "leaf1", "site.power": "feed a"},
        "n2": {"nic.r0.cable": "leaf2:Eth1/7", "site.rack": "r12"},
        "n3": {},
    }
    assert formats.write_groups(given) == (
        "n1 switch=leaf1 power=feed_a\nn2 switch=leaf2 power=r12\n"
    )
    with pytest.raises(DataError, match="what it falls with"):
        formats.write_groups({"n1": {}})


def test_topology_conf_both_ways() -> None:
    text = formats.write_topology({**VALUES, "n4": {"nic.r0.cable": "leaf2:Eth1/7"}})
    assert text.splitlines() == [
        "# n1: switch not known", "SwitchName=leaf1 Nodes=n[2-3]", "SwitchName=leaf2 Nodes=n4",
        "SwitchName=top Switches=leaf1,leaf2",
    ]  # fmt: skip
    assert formats.read_topology(text)["n3"] == {"slurm.switch": "leaf1"}
    with pytest.raises(DataError):
        formats.write_topology({"n1": {}})


WRONG = {
    "yaml": ["a: [", "- 1", "nodes: {'n[1-': {a: b}}", "nodes: {n1: {'A b': c}}", "nodes: {n1: 3}"],
    "csv": ["", "a,b\n1,2\n", "node,key,value\nn1,Bad Key,x\n"],
    "netbox": ["{", "[3]", '[{"name": "n1", "interfaces": [{"speed": "x", "name": "a"}]}]'],
    "topology": ["NodeName=x\n"],
}


@pytest.mark.parametrize(("form", "text"), [(f, t) for f, texts in WRONG.items() for t in texts])
def test_a_wrong_file_is_refused(form: str, text: str) -> None:
    with pytest.raises(DataError):
        formats.READERS[form](text)


HOSTILE = ['{"node": "n1"}', '{"node": "../x", "facts": {}}', '{"node": "n1", "facts": {"a": 1}}',
           '{"node": "n1", "facts": {"a;b": "x"}}', '{"node": "n1", "facts": {"a": "\\u001b["}}',
           "[]", '{"node": "n1", "facts": []}', '{"node": "n1", "facts": {"a": "' + "x" * 300
           + '"}}']  # fmt: skip


@pytest.mark.parametrize("line", HOSTILE)
def test_facts_that_no_node_prints_are_refused(line: str) -> None:
    with pytest.raises(DataError):
        collect.parse(line)


def test_nodes_on_which_no_job_can_start_are_said() -> None:
    nodes = [node("n1"), node("n2", "ALLOCATED", cpus_allocated=4), node("n3", "IDLE", "DRAIN")]
    fit, why = collect.reachable(nodes)
    assert [each.name for each in fit] == ["n1"]
    assert why == {"n2": "is full", "n3": "is drained"}


def test_a_way_of_the_site_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    way = tmp_path / "way"
    way.write_text(
        "#!/bin/sh\n[ $1 = n2 ] && { echo no route >&2; exit 9; }\n"
        """echo motd; echo "fabric $1 1/2 {\\"facts\\": {"; echo "fabric n9 1/1 {}"\n"""
        """echo "fabric $1 2/2 \\"a.b\\": \\"$2\\"}}"\n"""
    )
    way.chmod(0o755)
    found, why = collect.by_way([node("n1"), node("n2")], f"{way} {{node}}")
    assert found == {"n1": {"a.b": "fabricctl"}}
    assert why == {"n2": "no route"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    slurm = FakeSlurm({f"n{number}": node(f"n{number}") for number in range(1, 5)})
    monkeypatch.setattr("fabricctl.slurm.choose.open_slurm", lambda _=None: slurm)
    monkeypatch.setattr("fabricctl.slurm.topology.switches", lambda: ())
    monkeypatch.setenv("FABRICCTL_FLEET_DIR", str(tmp_path / "fleet"))
    return slurm


def call(*words: str, text: str | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["inventory", *words], input=text)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def lines(**more: str) -> str:
    facts = {f"n{number}": {"bios.version": "1", "gpu.count": "8"} for number in range(1, 5)}
    for name, value in more.items():
        facts[name]["bios.version"] = value
    return "".join(json.dumps({"node": n, "facts": mine}) + "\n" for n, mine in facts.items())


@pytest.mark.usefixtures("site")
def test_from_taking_facts_in_to_what_differs(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing was discovered"):
        call("diff")
    call("take", "-", text=lines(n3="2"))
    status, text = call("diff", "--json")
    (one,) = json.loads(text)["deviations"]
    assert (status, one["node"], one["source"]) == (1, "n3", "3 of 4 peers")
    assert "would declare 2 values" in call("accept", "n[3-4]", "--dry-run")[1]
    assert call("accept", "n[1-4]")[0] == 0
    assert call("diff") == (0, "nothing differs\n")
    call("take", "-", text=lines(n3="2", n4="3"))
    status, text = call("diff", "--no-peers")
    assert status == 1 and text.splitlines()[1].split()[:4] == ["n4", "bios.version", "3", "1"]
    file = tmp_path / "site.yaml"
    file.write_text("nodes: {'n[1-4]': {bios: {version: '3'}}}\n")
    assert call("import", str(file))[0] == 0
    found = {d["node"] for d in json.loads(call("diff", "--json")[1])["deviations"]}
    assert found == {"n1", "n2", "n3"}
    assert "bios.version: '3'" in call("export", "--what", "declared")[1]
    assert "n4" in call("show")[1]
    assert len(json.loads(call("show", "n4", "--history", "--json")[1])["values"]) == 3
    assert call("forget", "n4")[0] == 0
    assert "n4" not in call("show")[1]
    done = [line for line in changes.read(tmp_path / "fleet") if line["outcome"] == "begun"]
    assert [(line["what"], line["on"]) for line in done] == [
        ("take", "n[1-4]"), ("accept", "n[1-4]"), ("take", "n[1-4]"), ("import", "n[1-4]"),
        ("forget", "n4"),
    ]  # fmt: skip
    assert done[3]["text"] == "site.yaml: 4 values declared anew"


@pytest.mark.usefixtures("site")
def test_what_slurm_says_of_a_node_stays_when_the_node_tells_of_itself(tmp_path: Path) -> None:
    with Inventory(tmp_path / "inventory.db") as inventory:
        inventory.record("n1", {"slurm.switch": "leaf1", "cpu.threads": "2"}, 10)
        assert inventory.record("n1", {"cpu.threads": "4"}, 20) == 1
        assert {k: s.value for k, s in inventory.now()["n1"].items()} == {
            "slurm.switch": "leaf1", "cpu.threads": "4",
        }  # fmt: skip
        assert inventory.record("n1", {"slurm.cpus": "4", "cpu.threads": "4"}, 30) == 2
        assert set(inventory.now()["n1"]) == {"slurm.cpus", "cpu.threads"}


def test_a_damaged_line_takes_nothing_in() -> None:
    with pytest.raises(DataError):
        call("take", "-", text=lines() + "{garbage\n")
    assert call("show")[1].startswith("nothing was discovered yet")


def test_records_of_many_nodes_through_one_pipe_in_any_order() -> None:
    chance = random.Random(7)
    records = {f"n{at}": {"facts": {"k.x": "\u00e9" * at * 40}} for at in range(1, 30)}
    pieces = [lines_module.split(node, record).splitlines() for node, record in records.items()]
    mixed = ["motd", "fabric", "fabric n1 x/y z"]
    while any(pieces):
        mine = chance.choice([each for each in pieces if each])
        mixed.append(mine.pop(0))
    assert max(map(len, mixed)) < 1024
    assert lines_module.join("\n".join(mixed)) == records
    assert lines_module.join("\n".join(mixed[:-1])).keys() < records.keys()
    assert lines_module.join("fabric n1 1/2 {}\nfabric n1 1/1 {}\nfabric n2 1/1 [") == {}
