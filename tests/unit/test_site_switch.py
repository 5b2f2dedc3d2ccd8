"""``fabricctl site enable|disable``: lines put into a site's files and taken away again."""

from pathlib import Path

import pytest

from fabricctl import config
from fabricctl.cli.site_partition import with_mode
from fabricctl.errors import ConfigError, DataError, SystemRefusedError
from fabricctl.slurm import siteconf

OLD, NEW = (22, 5), (24, 11)


def carry_out(conf: Path, version: tuple[int, int]) -> None:
    for edit in siteconf.enabling(conf, version):
        siteconf.carry_out(edit)


def undo(conf: Path) -> None:
    for edit in siteconf.disabling(conf):
        siteconf.carry_out(edit)


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    for name in ("prolog.d", "epilog.d", "plugstack.conf.d"):
        (tmp_path / name).mkdir()
    (tmp_path / "plugstack.conf.d" / "fabric.conf").write_text(
        "optional /usr/lib/slurm/fabric.so\n"
    )
    path = tmp_path / "slurm.conf"
    path.write_text("ClusterName=x\n")
    return path


def everything(below: Path) -> dict[str, str]:
    return {
        str(path.relative_to(below)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes().decode()
        for path in sorted(below.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


TEXTS = {
    "bare": "ClusterName=x\n",
    "empty": "",
    "no newline at the end": "ClusterName=x",
    "own prolog": "ClusterName=x\nProlog=/site/prolog\nPrologFlags=NoHold,Serial\n",
    "commented": "#Prolog=/site/prolog\n",
    "other line ends": "ClusterName=x\r\nPrologFlags=Serial\r\n# a\rb\n",
}


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("name", TEXTS)
def test_disable_gives_every_file_back(conf: Path, name: str, version: tuple[int, int]) -> None:
    conf.write_text(TEXTS[name])
    before = everything(conf.parent)
    carry_out(conf, version)
    assert everything(conf.parent) != before
    assert siteconf.enabling(conf, version) == []
    undo(conf)
    assert everything(conf.parent) == before
    assert siteconf.disabling(conf) == []


def test_a_site_without_a_prolog_gets_the_directory(conf: Path) -> None:
    lines, links = siteconf.slurm_lines(conf, siteconf.settings(conf), OLD)
    assert lines == [
        f"Prolog={conf.parent}/prolog.d/*", f"Epilog={conf.parent}/epilog.d/*", "PrologFlags=Alloc",
    ]  # fmt: skip
    assert not links


def test_what_is_written_is_absolute_where_the_file_was_named_from_here(
    conf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm does not start with a Prolog=prolog.d/*; and disable finds it by any name."""
    monkeypatch.chdir(conf.parent)
    carry_out(Path("slurm.conf"), OLD)
    assert f"Prolog={conf.parent}/prolog.d/*\n" in conf.read_text()
    undo(Path("slurm.conf"))
    assert conf.read_text() == "ClusterName=x\n"


def test_a_sites_own_prolog_goes_on_running(conf: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.sh"
    own.touch()
    has = {"prolog": [str(own)], "prologflags": ["Contain,NoHold"]}
    lines, links = siteconf.slurm_lines(conf, has, NEW)  # all that are named run
    assert lines[0] == f"Prolog={conf.parent}/prolog.d/fabric-prolog"
    assert not links
    lines, links = siteconf.slurm_lines(conf, has, OLD)  # the last one named runs
    assert lines[0] == f"Prolog={conf.parent}/prolog.d/*"
    assert [(each.path.name, each.link) for each in links] == [("00-site-00-own.sh", own)]
    assert not any(line.startswith("PrologFlags") for line in lines)  # Contain brings Alloc


def test_own_prolog_flags_are_kept(conf: Path) -> None:
    lines, _ = siteconf.slurm_lines(conf, {"prologflags": ["NoHold,Serial"]}, NEW)
    assert lines[-1] == "PrologFlags=NoHold,Serial,Alloc"


def test_a_glob_of_the_site_that_finds_ours_is_enough(conf: Path) -> None:
    has = {"prolog": [f"{conf.parent}/prolog.d/*"], "epilog": [f"{conf.parent}/epilog.d/fabric*"]}
    lines, links = siteconf.slurm_lines(conf, {**has, "prologflags": ["X11"]}, NEW)
    assert (lines, links) == ([], [])


def test_included_files_count_and_a_loop_is_said(conf: Path) -> None:
    (conf.parent / "more.conf").write_text("PROLOGFLAGS = Alloc # yes\n")
    conf.write_text("include more.conf\n")
    assert siteconf.settings(conf) == {"prologflags": ["Alloc"]}
    (conf.parent / "more.conf").write_text("PrologFlags=Alloc\ninclude slurm.conf\n")
    with pytest.raises(DataError, match="is it a loop"):
        siteconf.settings(conf)


def test_a_plugstack_that_loads_us_already_is_left_alone(conf: Path) -> None:
    stack = conf.parent / "plugstack.conf"
    stack.write_text(f"include {conf.parent}/plugstack.conf.d/*.conf\n")
    assert [edit.path for edit in siteconf.enabling(conf, NEW)] == [conf]


def test_mode_and_link_of_the_file_stay(conf: Path, tmp_path: Path) -> None:
    real = tmp_path / "repository.conf"
    conf.rename(real)
    real.chmod(0o640)
    conf.symlink_to(real)
    carry_out(conf, NEW)
    assert conf.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert "PrologFlags=Alloc" in real.read_text()


def test_a_file_that_cannot_be_written_is_said(conf: Path) -> None:
    edit = siteconf.Edit(Path("/proc/nothing/x"), None, "text")
    with pytest.raises(SystemRefusedError, match="cannot be changed"):
        siteconf.carry_out(edit)
    del conf


def modes(text: str, path: Path) -> dict[str, str]:
    path.write_text(text)
    found = config.load(path, {})
    return {name: found.for_partition(name).agent.max_mode for name in found.partitions}


TOMLS = {
    "": "",
    "other": "[agent]\nsample_hz = 2\n",
    "no newline": "[agent]\nsample_hz = 2",
    "has a section": "[partition.gpu]\nagent.sample_hz = 10.0\n\n[trace]\nkeep_parts = true\n",
}


@pytest.mark.parametrize("name", TOMLS)
def test_a_partition_is_turned_off_and_on(tmp_path: Path, name: str) -> None:
    file = tmp_path / "fabricctl.toml"
    off = with_mode(TOMLS[name], "gpu", "off", "f")
    assert modes(off, file)["gpu"] == "off"
    assert with_mode(off, "gpu", "off", "f") == off
    on = with_mode(off, "gpu", "observe", "f")
    assert modes(on, file)["gpu"] == "observe"
    both = with_mode(on, "big.mem", "off", "f") if name != "no newline" else on
    assert modes(both, file)["gpu"] == "observe"
    gone = with_mode(on, "gpu", None, "f")
    assert gone.rstrip("\n") == TOMLS[name].rstrip("\n")


def test_a_file_that_says_it_unusually_is_refused() -> None:
    text = "[partition]\ngpu = {agent = {max_mode = 'on'}}\n"
    with pytest.raises((ConfigError, ValueError), match=r"by hand|gpu|declare"):
        with_mode(text, "gpu", "off", "f")
