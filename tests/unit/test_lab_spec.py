"""Sizes, names and addresses of a lab, and what its nodes are told."""

from pathlib import Path

import pytest

from fabricctl.errors import LabError, UsageError
from fabricctl.lab.boot import Boot, Service
from fabricctl.lab.slurmconf import SlurmVersion, cgroup_conf, parse_version, slurm_conf
from fabricctl.lab.spec import LabSpec
from fabricctl.lab.units import Directory, Mount, Sandbox


def test_the_last_node_is_the_spare() -> None:
    spec = LabSpec()
    assert spec.compute_nodes == ("n1", "n2", "n3", "n4", "n5")
    assert spec.all_nodes[0] == "ctl"
    assert (spec.main_nodes, spec.interfaces) == (4, ("m0", "r0", "r1"))


def test_addresses_are_unique_and_networks_apart() -> None:
    spec = LabSpec(nodes=200, rails=8)
    addresses = {spec.address(node, face) for node in spec.all_nodes for face in spec.interfaces}
    assert len(addresses) == 201 * 9
    assert spec.address("ctl", "m0") == "10.77.0.1"
    assert spec.address("n1", "r0") == "10.78.0.11"
    assert spec.address("n200", "r1") == "10.79.0.210"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "Lab"}, "lab name 'Lab': a small letter, then at most 30 of a-z, 0-9 and -"),
        ({"name": "../x"}, "lab name '../x': a small letter"),
        ({"nodes": 0}, "lab: 0 nodes, 1 to 200 are possible"),
        ({"rails": 9}, "lab: 9 rails, 1 to 8 are possible"),
    ],
)
def test_impossible_labs_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        LabSpec(**given)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_a_spec_survives_its_file() -> None:
    spec = LabSpec(name="x", nodes=3, rate_bit_per_s=10**9, conf={"KillWait": "3"})
    assert LabSpec.from_json(spec.to_json()) == spec
    with pytest.raises(LabError, match=r"spec\.json cannot be read"):
        LabSpec.from_json("{}")


def test_a_boot_survives_its_file() -> None:
    boot = Boot(
        node="n1",
        state=Path("/run/fabricctl-lab/x"),
        netns=Path("/run/fabricctl-lab/x/net/n1"),
        code=(Path("/work"),),
        cgroup_dirs=(),
        cgroup_mounts={"cpu": "cpu,cpuacct"},
        services=(
            Service("munged", ("/usr/sbin/munged", "-F"), user="munge", wait_for="/x"),
            Service("node", ("/bin/true",), sandbox=Sandbox((0, 5), ("read",), (1,))),
        ),
        mounts=(Mount("x", "/run/x", "tmpfs", ("nosuid", "size=1m")),),
        directories=(Directory("/run/y", 0o711),),
    )
    assert Boot.from_json(boot.to_json()) == boot
    with pytest.raises(LabError, match=r"boot\.json cannot be read"):
        Boot.from_json("[]")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("slurm-wlm 22.05.8\n", SlurmVersion(22, 5)),
        ("slurm 24.11.5", SlurmVersion(24, 11)),
        ("slurm-wlm 26.05.0-0rc1", SlurmVersion(26, 5)),
    ],
)
def test_slurms_version_is_read(text: str, version: SlurmVersion) -> None:
    assert parse_version(text) == version


def test_a_version_that_is_none_is_an_error() -> None:
    with pytest.raises(LabError, match="slurmctld -V says 'command not found': no Slurm version"):
        parse_version("command not found")


@pytest.mark.parametrize(
    ("version", "v1", "plugin"),
    [
        (SlurmVersion(22, 5), True, "CgroupPlugin=cgroup/v1"),
        (SlurmVersion(22, 5), False, "CgroupPlugin=cgroup/v1"),
        (SlurmVersion(24, 11), False, "CgroupPlugin=disabled"),
        (SlurmVersion(24, 11), True, "CgroupPlugin=cgroup/v1"),
    ],
)
def test_the_cgroup_plugin_fits_slurm_and_machine(
    version: SlurmVersion, v1: bool, plugin: str
) -> None:
    assert cgroup_conf(version, cgroup_v1=v1).startswith(plugin)


def test_without_cgroups_slurm_tracks_processes_by_itself() -> None:
    text = slurm_conf(LabSpec(), cgroup_v1=False, extra={})
    assert "ProctrackType=proctrack/linuxproc\n" in text
    assert "cgroup" not in text


def test_settings_of_the_site_and_of_the_user_replace_the_labs() -> None:
    spec = LabSpec(conf={"KillWait": "1", "PrologFlags": ""})
    text = slurm_conf(spec, cgroup_v1=True, extra={"PrologFlags": "Alloc", "Prolog": "/x"})
    assert "KillWait=1\n" in text
    assert "KillWait=5" not in text
    assert "PrologFlags" not in text
    assert "Prolog=/x\n" in text


def test_every_node_is_in_slurms_configuration() -> None:
    text = slurm_conf(LabSpec(nodes=3), cgroup_v1=True, extra={})
    assert "NodeName=n3 NodeAddr=10.77.0.13 " in text
    assert "PartitionName=main Nodes=n[1-2] Default=YES" in text
    assert "PartitionName=all Nodes=n[1-3]" in text


def test_links_with_a_rate_carry_small_bunches_of_packets() -> None:
    assert LabSpec().max_segments("r0") == 0
    assert LabSpec(rate_bit_per_s=10**8).max_segments("r0") == 1
    assert LabSpec(rate_bit_per_s=10**9).max_segments("r0") == 4
    assert LabSpec(rate_bit_per_s=10**9).max_segments("m0") == 0
