"""Finding the plugin's line in plugstack.conf, and which Slurm a file was built for."""

import shutil
import subprocess
from pathlib import Path

import pytest

from fabricctl.errors import DataError
from fabricctl.slurm import plugin


def compiled(folder: Path, source: str) -> Path:
    """A shared object from C source; gcc is what builds the plugin itself."""
    path = folder / "fabric.so"
    argv = ["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(path)]
    subprocess.run(argv, input=source, text=True, check=True, timeout=60)
    return path


needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")


@needs_gcc
@pytest.mark.parametrize(
    ("number", "series"), [("0x160508", (22, 5)), ("0x180b05", (24, 11)), ("0x1a0505", (26, 5))]
)
@pytest.mark.parametrize("qualifier", ["const", ""], ids=["rodata", "data"])
def test_the_number_that_slurm_compares_is_read(
    tmp_path: Path, number: str, series: tuple[int, int], qualifier: str
) -> None:
    source = (
        'const char plugin_name[] = "fabric";\nconst char plugin_type[] = "spank";\n'
        f"{qualifier} unsigned int plugin_version = {number};\n"
    )
    assert plugin.built_for(compiled(tmp_path, source)) == series


@needs_gcc
def test_a_library_that_is_no_plugin(tmp_path: Path) -> None:
    path = compiled(tmp_path, "int other = 3;\n")
    with pytest.raises(DataError) as caught:
        plugin.built_for(path)
    assert str(caught.value) == f"{path}: not a Slurm plugin: it has no plugin_version"


def test_a_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "fabric.so"
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF\x01" + bytes(100), b"\x7fELF\x02" + bytes(20)):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"fabric\.so: not a Slurm plugin: "):
            plugin.built_for(path)


def test_a_damaged_library_is_an_error_of_data(tmp_path: Path) -> None:
    whole = Path("/bin/sh").read_bytes()[:20_000]
    path = tmp_path / "fabric.so"
    for cut in range(64, 20_000, 997):
        path.write_bytes(whole[:cut])
        with pytest.raises(DataError):
            plugin.built_for(path)


def test_the_line_is_found_with_its_arguments(tmp_path: Path) -> None:
    file = tmp_path / "plugstack.conf"
    file.write_text(
        "# optional /old/fabric.so\n\nrequired other.so a=b\n"
        "optional  /usr/lib/slurm/fabric.so run_dir=/run/x allow=observe,on # ours\n"
    )
    line = plugin.find_line(file)
    assert line is not None
    assert (line.file, line.required, line.plugin) == (file, False, "/usr/lib/slurm/fabric.so")
    assert line.arguments == {"run_dir": "/run/x", "allow": "observe,on"}


def test_included_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "plugstack.conf").write_text(f"include {tmp_path}/d/*.conf\ninclude rest\n")
    (tmp_path / "d" / "a.conf").write_text("optional other.so\n")
    (tmp_path / "rest").write_text("required fabric.so\n")
    line = plugin.find_line(tmp_path / "plugstack.conf")
    assert line is not None
    assert (line.file.name, line.required) == ("rest", True)


def test_no_line_is_none_and_a_loop_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "plugstack.conf"
    file.write_text("required other.so\n")
    assert plugin.find_line(file) is None
    file.write_text(f"include {file}\n")
    with pytest.raises(DataError, match="is it a loop"):
        plugin.find_line(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"plugstack\.conf: cannot be read: No such file"):
        plugin.find_line(tmp_path / "plugstack.conf")


def test_a_name_without_a_path_lies_in_a_plugin_directory(tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "fabric.so").touch()
    line = plugin.PlugstackLine(tmp_path, True, "fabric.so", {})
    assert line.find(f"{tmp_path}/first:{tmp_path}/second") == tmp_path / "second" / "fabric.so"
    assert line.find(f"{tmp_path}/first") == tmp_path / "first" / "fabric.so"
    line = plugin.PlugstackLine(tmp_path, True, "/a/fabric.so", {})
    assert line.find(str(tmp_path)) == Path("/a/fabric.so")
