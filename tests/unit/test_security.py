"""What docs/security.md promises and no test of a single part shows."""

import ast
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fabricctl.node import rootfiles

ROOT = Path(__file__).parents[2]
CODE = [*sorted((ROOT / "fabricctl").rglob("*.py")), *sorted((ROOT / "analysis").rglob("*.py"))]
# Starts a shell with a script of its own; what somebody wrote are that script's arguments.
ARGUMENTS_ONLY = {"fabricctl/fleet/audit/reach.py", "fabricctl/fleet/maintenance/commands.py"}
# A program's own state, which came back under its job's key and with its checksum.
# And what a child of a report reads of some nodes, in a file without a name that both have open.
ITS_OWN = {"analysis/fabricctl_analysis/node_parts.py", "fabricctl/state/ckpt/items.py"}
SHELLS = {"sh", "bash", "/bin/sh", "/bin/bash"}


def test_each_test_that_the_threat_model_names_exists() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", text))
    files = [*ROOT.glob("tests/unit/*.py"), *ROOT.glob("tests/lab/*.py")]
    there = set(re.findall(r"^def (test_\w+)", "\n".join(f.read_text() for f in files), re.M))
    assert len(named) > 30
    assert not named - there


def test_every_line_of_the_threat_model_has_a_test() -> None:
    rows = [
        line.split(" | ")
        for line in (ROOT / "docs" / "security.md").read_text().splitlines()
        if line.startswith("| ") and not line.startswith("| what")
    ]
    assert len(rows) > 20
    bare = [row[0] for row in rows if "`test_" not in row[-1] and "(accepted)" not in row[-1]]
    assert not bare


def test_no_shell_runs_what_somebody_wrote() -> None:
    """No shell=True, no os.system; a shell by name only in the lab, which is its user's own."""
    found = []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.keyword) and node.arg == "shell":
                found.append(where)
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("os.system", "os.popen"):
                found.append(where)
            if isinstance(node, ast.List | ast.Tuple) and "lab" not in path.parts:
                words = [e.value for e in node.elts if isinstance(e, ast.Constant)]
                if "-c" in words and SHELLS & {str(word) for word in words}:
                    found.append(where)
    assert {place.partition(":")[0] for place in found} <= ARGUMENTS_ONLY


def test_nothing_is_unpickled_or_evaluated() -> None:
    wrong = re.compile(
        r"^\s*(import|from) (pickle|marshal|shelve)\b|(?<![.\w])(eval|exec)\((?!self)"
        r"|yaml\.load\(|allow_pickle=True",
        re.MULTILINE,
    )
    texts = {str(path.relative_to(ROOT)): path.read_text() for path in CODE}
    found = {name for name, text in texts.items() if wrong.search(text.replace("def exec(", ""))}
    assert found <= ITS_OWN


def test_processes_with_keys_leave_no_core() -> None:
    code = (
        "import ctypes, os, resource\n"
        "from fabricctl.node import spawn\n"
        "spawn.leave_no_core()\n"
        "if os.fork() == 0:\n"  # as an agent is made
        "    print(ctypes.CDLL(None).prctl(3), *resource.getrlimit(resource.RLIMIT_CORE))\n"
        "    os._exit(os.EX_OK) if not __import__('sys').stdout.flush() else None\n"
        "os.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.split() == ["0", "0", "0"]


@pytest.mark.skipif(os.geteuid() != 0, reason="removes as root does")
def test_a_tree_swapped_while_it_is_removed_takes_nothing_else_along(tmp_path: Path) -> None:
    """Somebody renames a link to elsewhere into the place of a directory, all the time."""
    precious = tmp_path / "precious"
    precious.mkdir()
    for number in range(20):
        (precious / f"{number}").touch()
    stop = threading.Event()
    tree = tmp_path / "tree"

    def swap() -> None:
        while not stop.is_set():
            try:
                (tree / "d").rename(tmp_path / "aside")
                (tree / "d").symlink_to(precious)
            except OSError:
                continue

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(200):
            (tree / "d").mkdir(parents=True, exist_ok=True) if not (tree / "d").is_symlink() else 0
            for name in "abc":
                try:
                    (tree / "d" / name / "e").mkdir(parents=True)
                except OSError:
                    break
            try:
                rootfiles.remove_tree(tree)
            except OSError:
                continue  # it may fail, it must not go elsewhere
    finally:
        stop.set()
        thread.join()
    assert len(list(precious.iterdir())) >= 20
