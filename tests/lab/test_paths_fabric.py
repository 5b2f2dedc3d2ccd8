"""Link failover with fabric addresses (paths.addresses = "fabric"): devices of our own."""

import itertools
import json
import time
from collections.abc import Iterator

import pytest

from fabricctl.lab.cluster import Lab
from tests.lab.test_paths_jobs import (  # noqa: F401 - fixtures
    LOADED_MS,
    NODES,
    _built,
    address_of,
    cancel,
    clean,
    events,
    exchange,
    stall_ms,
    state,
    submit,
    wait_until,
)

pytestmark = pytest.mark.lab


def restart_services(lab: Lab) -> None:
    for node in NODES:
        lab.fault("kill", node, "fabricctl-node")
        lab.heal("kill", node, "fabricctl-node")


@pytest.fixture(scope="module", autouse=True)
def _fabric(_lab: Lab) -> Iterator[None]:
    file = _lab.host_path("n1", "/etc/fabricctl.toml")
    before = file.read_text()
    file.write_text(before + '\n[paths]\naddresses = "fabric"\n')
    restart_services(_lab)
    yield
    file.write_text(before)
    restart_services(_lab)


@pytest.fixture
def job(lab: Lab, clean: dict[str, list[str]]) -> Iterator[int]:  # noqa: F811
    made = submit(lab)
    yield made
    lab.heal_all()
    cancel(lab, made)


def test_ranks_are_told_the_devices_and_streams_run_over_each(lab: Lab, job: int) -> None:
    for node in NODES:
        text = lab.exec(node, ["cat", f"/run/fabricctl/paths/{job}/env"]).stdout
        assert "OMPI_MCA_btl_tcp_if_include=fab0,fab1\n" in text
    for device, family in itertools.product(("fab0", "fab1"), ("-4", "-6")):
        path = f"/sys/class/net/{device.replace('fab', 'r')}/statistics/tx_bytes"
        before = int(lab.exec("n1", ["cat", path]).stdout)
        said = exchange(lab, 0.5, device=device, family=family)
        assert said["blocks"] > 10
        assert int(lab.exec("n1", ["cat", path]).stdout) - before > 10 * 65536


def test_jobs_side_by_side_share_the_addresses_until_the_last_one_ends(lab: Lab, job: int) -> None:
    second = submit(lab)
    with_two = lab.exec("n1", ["ip", "-br", "address", "show", "fab0"]).stdout
    cancel(lab, second)
    assert lab.exec("n1", ["ip", "-br", "address", "show", "fab0"]).stdout == with_two
    assert state(lab, "n1", job)["state"] == "ready"
    assert exchange(lab, 0.5, device="fab0")["blocks"] > 10


def test_a_rail_that_falls_silent_is_left(lab: Lab, job: int) -> None:
    begin = 0

    def during() -> None:
        nonlocal begin
        time.sleep(1)
        begin = lab.fault("blackhole", "n2", "r0").mono_ns

    said = exchange(lab, 4, during, device="fab0")
    assert stall_ms(said, begin) < LOADED_MS
    assert "dead" in {item["level"] for item in events(lab, "n1", job, "path")}


def test_a_node_with_one_rail_leaves_the_whole_job_on_its_own_interfaces(
    lab: Lab,
    clean: dict[str, list[str]],  # noqa: F811
) -> None:
    own = json.loads(lab.exec("n2", ["ip", "-j", "address", "show", "r1"]).stdout)[0]["addr_info"]
    lab.exec("n2", ["ip", "address", "flush", "dev", "r1"])
    argv = ["sbatch", "--parsable", "--fabric-resilience", "-N4", "-o", "/dev/null"]
    job = int(lab.exec("ctl", argv, user="alice", input="#!/bin/bash\nsleep 600\n").stdout)
    try:
        for node in NODES:
            wait_until(f"{node} off", lambda at=node: state(lab, at, job).get("state") == "off")
            assert "env" not in lab.exec(node, ["ls", f"/run/fabricctl/paths/{job}"]).stdout
        assert "two are needed" in state(lab, "n2", job)["why"]
        for node in ("n1", "n3", "n4"):  # not whoever passed the word on
            assert state(lab, node, job)["why"] == "n2 cannot take part"
    finally:
        cancel(lab, job)
        for item in own:
            net = f"{item['local']}/{item['prefixlen']}"
            lab.exec("n2", ["ip", "address", "replace", net, "dev", "r1"])
