"""Imports point downwards, heavy packages live in one place each (docs/architecture.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "architecture.md"

# Third-party package: the only places that may import it.
HEAVY = {
    "h5py": ("fabricctl.store",),
    "pyslurm": ("fabricctl.slurm",),
    "pynvml": ("fabricctl.telemetry",),
    "mpi4py": ("fabricctl.mpi", "fabricctl_analysis.pool"),
    "pandas": ("fabricctl_analysis",),
    "bokeh": ("fabricctl_analysis",),
    "click": ("fabricctl.cli",),
    "rich": ("fabricctl.cli.top_app",),
    "textual": ("fabricctl.cli.top_app",),
    "psycopg": ("fabricctl.fleet.inventory.database",),
    "yaml": ("fabricctl.fleet.inventory",),
    "numpy": ("fabricctl.store", "fabricctl.clock", "fabricctl_analysis"),
}


def layer_table() -> dict[str, int]:
    """Area -> rank, from the table in the document: one row a rank, lowest first."""
    ranks: dict[str, int] = {}
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", DOCUMENT.read_text(), re.MULTILINE)
    for rank, areas in rows:
        for area in re.findall(r"`([\w.]+)`", areas):
            ranks[area] = int(rank)
    return ranks


def modules() -> Iterator[tuple[str, Path]]:
    for base, top in ((ROOT, "fabricctl"), (ROOT / "analysis", "fabricctl_analysis")):
        for path in sorted((base / top).rglob("*.py")):
            name = ".".join(path.relative_to(base).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def area_of(module: str, table: dict[str, int]) -> str | None:
    """The longest entry of the table that the module lies in."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in table:
            return ".".join(parts[:length])
    return None


def test_the_document_places_every_module() -> None:
    table = layer_table()
    assert len(table) > 10
    lost = [
        name
        for name, _ in modules()
        if area_of(name, table) in (None, "fabricctl") and name != "fabricctl"
    ]
    assert not lost


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value)[-40:])
def test_imports_point_down(module: str, path: Path) -> None:
    table = layer_table()
    here = area_of(module, table)
    assert here is not None
    for name in imports(path):
        there = area_of(name, table)
        if there is None or there in (here, "fabricctl"):
            continue
        assert table[there] < table[here], f"{module} imports {name}: not downwards"


@pytest.mark.parametrize(("module", "path"), list(modules()), ids=lambda value: str(value)[-40:])
def test_heavy_packages_live_in_one_place(module: str, path: Path) -> None:
    for name in imports(path):
        homes = HEAVY.get(name.split(".")[0])
        if homes is not None:
            assert module.startswith(homes), f"{module} imports {name}"
