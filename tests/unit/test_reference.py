"""The reference is made from the code, and the navigation of the site leads to it."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "src"
    argv = [sys.executable, str(ROOT / "tools" / "reference.py"), str(out)]
    subprocess.run(argv, check=True, timeout=300)
    return out


def test_it_says_what_the_code_says(made: Path) -> None:
    commands = (made / "reference" / "commands.md").read_text()
    assert "fabricctl maintenance plan" in commands and "`--budget" in commands
    assert "`agent.max_mode`" in (made / "reference" / "configuration-keys.md").read_text()
    assert "Checkpoint" in (made / "reference" / "python.md").read_text()
    assert "## link_event" in (made / "reference" / "trace-tables.md").read_text()
    assert "SlurmError" in (made / "reference" / "errors.md").read_text()


def test_what_the_navigation_names_is_there(made: Path) -> None:
    nav = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "tools/mkdocs.yml").read_text(), re.M))
    pages = {str(page.relative_to(made)) for page in made.rglob("*.md")}
    assert not nav - pages
    assert {page for page in pages if page.startswith("reference/")} <= nav


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed")
def test_the_site_is_built_without_a_warning(made: Path, tmp_path: Path) -> None:
    text = (ROOT / "tools" / "mkdocs.yml").read_text()
    text = re.sub(r"docs_dir: .*", f"docs_dir: {made}", text)
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"site_dir: .*", f"site_dir: {tmp_path}/s", text))
    argv = [sys.executable, "-m", "mkdocs", "build", "-q", "-f", str(tmp_path / "mkdocs.yml")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
