"""What ``fabricctl site check`` says of directories, scripts and a service, in every state."""

import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest

from fabricctl.cli import site_checks, site_machine
from fabricctl.cli.site_checks import Check, Place
from fabricctl.config import Config
from fabricctl.sections import AgentConfig, NodeConfig, TraceConfig
from fabricctl.slurm.model import Version


class _Slurm:
    """Only what the checks of files look at."""

    backend, reason, version = "commands", "x", Version(22, 5, "22.05.8")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    config = Config(
        node=NodeConfig(run_dir=tmp_path / "run", spool_dir=tmp_path / "spool"),
        trace=TraceConfig(dir=tmp_path / "traces"),
    )
    return Place(config, "n1", _Slurm(), {}, True)  # type: ignore[arg-type]


def with_settings(place: Place, **settings: str) -> Place:
    return replace(place, settings=settings)


def test_a_service_that_holds_its_lock_is_alive(place: Place) -> None:
    run_dir = place.config.node.run_dir
    run_dir.mkdir()
    with (run_dir / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (check,) = site_checks.node_service(place)
        assert check == Check("service", "ok", f"it holds {run_dir}/node.lock")
    (check,) = site_checks.node_service(place)
    assert check.status == "fail"
    assert check.found == f"nobody holds {run_dir}/node.lock: the node service is dead"
    assert check.todo == "systemctl start fabricctl-node; see its log: /var/log/fabricctl.log"


def test_a_service_that_never_ran(place: Place) -> None:
    (check,) = site_checks.node_service(place)
    assert (check.status, check.found) == (
        "fail", f"{place.config.node.run_dir}/node.lock: {os.strerror(2)}",
    )  # fmt: skip


def test_an_agent_user_that_is_not_there(place: Place) -> None:
    config = replace(place.config, agent=AgentConfig(user="nosuchuser"))
    (check,) = site_checks.agent_user(replace(place, config=config))
    assert (check.status, check.found) == ("fail", "nosuchuser: no such user")
    config = replace(place.config, agent=AgentConfig(user="nobody"))
    (check,) = site_checks.agent_user(replace(place, config=config))
    assert check.status == "ok"


def test_a_trace_directory_in_each_state(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.config.trace.dir

    def status() -> tuple[str, str]:
        (check,) = site_checks.traces(place)
        return check.status, check.todo or check.found

    monkeypatch.setattr(site_checks, "_file_system", lambda _: "lustre")
    assert status() == (
        "fail", f"mkdir -m 1777 {path} on the shared file system, or set trace.dir",
    )  # fmt: skip
    path.mkdir()
    path.chmod(0o777)
    assert status() == ("fail", f"chmod 1777 {path}")
    path.chmod(0o755)
    assert status() == ("warn", f"chmod 1777 {path}, or make a folder for each user")
    (path / "alice").mkdir()
    monkeypatch.setitem(site_checks.ROOM_WANTED_BYTES, "traces", 0)
    assert status()[0] == "ok"
    path.chmod(0o1777)
    assert status()[0] == "ok"
    assert "on lustre" in status()[1]
    monkeypatch.setattr(site_checks, "_file_system", lambda _: "tmpfs")
    assert status() == ("warn", "set trace.dir to a directory of the shared file system")


def test_a_full_disk_is_warned_of(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.config.node.spool_dir.mkdir(mode=0o711)
    monkeypatch.setitem(site_checks.ROOM_WANTED_BYTES, "spool", 1 << 60)
    (check,) = site_checks.spool(place)
    assert (check.status, check.todo) == ("warn", "make room: samples wait while it is full")


@pytest.mark.skipif(os.geteuid() != 0, reason="whose a directory is needs root")
def test_a_spool_in_each_state(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.config.node.spool_dir
    monkeypatch.setitem(site_checks.ROOM_WANTED_BYTES, "spool", 0)
    (check,) = site_checks.spool(place)
    assert (check.status, check.found) == ("fail", f"{path}: no such directory")
    path.mkdir()
    path.chmod(0o777)
    (check,) = site_checks.spool(place)
    assert (check.status, check.todo) == ("fail", f"chmod 711 {path}")
    path.chmod(0o711)
    assert [check.status for check in site_checks.spool(place)] == ["ok"]
    (path / "17.1").mkdir()
    assert [check.status for check in site_checks.spool(place)] == ["ok"]
    os.utime(path / "17.1", (0, 0))
    stuck, room = site_checks.spool(place)
    assert (stuck.status, room.status) == ("warn", "ok")
    assert stuck.found == f"1 traces wait in {path} for over a day, e.g. 17.1"


def script(path: Path, text: str = "#!/bin/sh\n", mode: int = 0o755) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_scripts_by_name_by_glob_and_inside_a_sites_own(place: Place, tmp_path: Path) -> None:
    prolog = script(tmp_path / "prolog.d" / "fabric-prolog")
    epilog = script(tmp_path / "own-epilog", "#!/bin/sh\n/opt/fabric-epilog\n")
    for key, value in (
        ("Prolog", str(prolog)),
        ("Prolog", f"{tmp_path}/prolog.d/*"),
        ("Prolog[1]", f"{tmp_path}/prolog.d/*"),
    ):
        settings = {key: value, "Epilog": str(epilog), "PrologFlags": "Alloc"}
        found = list(site_checks.scripts(replace(place, settings=settings)))
        assert found == [Check("prolog", "ok", str(prolog)), Check("epilog", "ok", str(epilog))]


def test_scripts_that_are_not_called_or_cannot_run(place: Place, tmp_path: Path) -> None:
    prolog = script(tmp_path / "fabric-prolog", mode=0o644)
    other = script(tmp_path / "other")
    settings = {"Prolog": str(prolog), "Epilog": str(other), "PrologFlags": "(null)"}
    first, second, flags = site_checks.scripts(replace(place, settings=settings))
    assert (first.status, first.todo) == ("fail", f"chmod 755 {prolog}")
    assert second.found == f"Epilog={other}: fabric-epilog is not called"
    assert (flags.status, flags.todo) == ("warn", "PrologFlags=Alloc")
    first, *_ = site_checks.scripts(with_settings(place, Prolog="(null)"))
    assert first.found == "no Prolog is set: fabric-prolog is not called"


@pytest.mark.parametrize("flags", ["Alloc", "Contain,X11", "alloc,nohold", "X11"])
def test_flags_that_bring_alloc_are_enough(place: Place, flags: str) -> None:
    found = list(site_checks.scripts(with_settings(place, PrologFlags=flags)))
    assert "prologflags" not in [check.name for check in found]


def test_a_slurm_without_munge_needs_none(place: Place) -> None:
    (check,) = site_checks.munge(with_settings(place, AuthType="auth/slurm"))
    assert check == Check("munge", "ok", "not used: AuthType=auth/slurm")


def test_the_file_system_of_a_path_is_the_innermost() -> None:
    assert site_checks._file_system(Path("/proc/self")) == "proc"
    assert site_checks._file_system(Path("/")) not in (None, "proc")


def ports_of(place: Place, proc: Path, ephemeral: str = "32768\t60999\n") -> list[Check]:
    (proc / "sys/net/ipv4").mkdir(parents=True, exist_ok=True)
    (proc / "sys/net/ipv4/ip_local_port_range").write_text(ephemeral)
    return list(site_machine.ports(place, proc))


def test_ports_are_said_for_the_firewall(place: Place, tmp_path: Path) -> None:
    (check,) = ports_of(place, tmp_path)
    assert check.status == "ok"
    assert check.found.startswith("agents UDP 20100-20499, clock UDP 20900-21299, ")


def test_ports_that_others_are_given_or_that_overlap(place: Place, tmp_path: Path) -> None:
    found = ports_of(place, tmp_path, "20450 60999")
    assert [check.status for check in found] == ["warn"] * 4
    assert found[0].found == "agents UDP 20100-20499: the kernel gives ports of it to any program"
    config = replace(place.config, agent=AgentConfig(port_first=20200))
    (check,) = ports_of(replace(place, config=config), tmp_path)
    assert (check.status, check.found) == ("warn", "agents UDP and probes UDP overlap")


def test_what_a_kernel_lacks_is_told_with_what_does_not_work(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = site_machine.Feature("frobs", "ip", "frob add", "frobbing")
    monkeypatch.setattr(site_machine, "FEATURES", (lacking,))
    kernel, psi = site_machine.kernel(place, tmp_path)
    if "not permitted" not in kernel.found:
        assert kernel.found.endswith('no frobs (Object "frob" is unknown, try "ip help".)'), kernel
        assert kernel.todo == "a kernel with it; without: no frobbing"
        assert "no PSI" in psi.found


def test_a_login_node_s_kernel_is_not_asked(place: Place) -> None:
    assert list(site_machine.kernel(replace(place, is_node=False))) == []


def test_an_mpi_library_says_what_it_is(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_machine, "LOADER_NAMES", ("nosuchmpi",))
    (check,) = site_machine.mpi(place)
    assert check.found.startswith("none where the loader looks")
    monkeypatch.setattr(site_machine, "LOADER_NAMES", ("c",))  # it has no such function
    (check,) = site_machine.mpi(place)
    assert (check.status, check.found) == ("warn", "libc.so.6 does not say what it is")
