"""Every command that the documents name exists, with the options and values that they give it.

Commands that need no cluster are run; the others are read as the command line would read them, up
to the point where they would begin. Lines of other programs (sbatch, srun, systemctl, ...) are
looked at for options of ours only.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from fabricctl.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(fabricctl(?: [^`]+)?)`")
# What stands for something else in a document.
STAND_INS = {"JOB": "1", "NODE": "n1", "FILE": "f", "DIR": "d", "PID": "1", "DIRECTORY": "d"}
PLUGIN = (ROOT / "spank_plugin" / "options.c").read_text()
SLURM_OPTIONS = {f"--{name}" for name in re.findall(r"\.name = \"(fabric-\w+)\"", PLUGIN)}
# Without a cluster, quick, and without a trace.
RUNNABLE = {
    ("config", "sample"), ("lab", "fault"), ("plan",), ("manual", "completion"),
}  # fmt: skip


def lines() -> Iterator[tuple[str, str]]:
    """(page, command line) of all fenced blocks and inline code."""
    for page in PAGES:
        text = page.read_text()
        for language, block in FENCE.findall(text):
            if language in ("", "bash", "sh"):
                for line in block.replace("\\\n", " ").splitlines():
                    yield page.name, re.sub(r"^ *[$#] ", "", line).strip()
        for found in INLINE.findall(FENCE.sub("", text)):
            yield page.name, found


def ours() -> list[tuple[str, str]]:
    found = []
    for page, line in lines():
        bare = re.sub(r"(^| )#.*", "", line)
        for part in re.split(r" && | ; | \| ", bare):
            inner = re.sub(r"^srun .*? fabricctl\b|^exec fabricctl\b", "fabricctl", part.strip())
            if inner.startswith("fabricctl "):
                found.append((page, inner))
    return sorted(set(found))


def words(line: str) -> list[str]:
    """As a shell would give them; optional parts, redirections and stand-ins taken out."""
    line = re.sub(r" \[[^\]]*\]", "", line) if " [--" in line else line
    line = line.split(" > ")[0].replace("$SLURM_JOB_ID", "1").rstrip(" .")
    given = shlex.split(line)[1:]
    return [STAND_INS.get(word.strip("…"), word) for word in given]


def resolve(given: list[str]) -> tuple[click.Command, list[str], tuple[str, ...]]:
    command: click.Command = cli
    names: tuple[str, ...] = ()
    context = click.Context(cli, info_name="fabricctl")
    while isinstance(command, click.Group) and given and not given[0].startswith("-"):
        below = command.get_command(context, given[0])
        if below is None:
            raise AssertionError(f"no command {' '.join([*names, given[0]])!r}")
        names = (*names, given[0])
        command, given = below, given[1:]
    return command, given, names


def test_the_documents_have_commands() -> None:
    assert len(ours()) > 80


@pytest.mark.parametrize(("page", "line"), ours(), ids=lambda value: value[:60])
def test_a_command_is_as_documented(page: str, line: str) -> None:
    if "|" in line:  # "enable|disable": each of them
        line = re.sub(r"(\w+)(\|\w+)+", r"\1", line)
    command, rest, names = resolve(words(line))
    if names[:1] == ("lab",) and isinstance(command, click.Group):
        rest = rest[:0]
    options = {o for p in command.get_params(click.Context(command)) for o in [*p.opts,
               *p.secondary_opts]} | {"-h"}  # fmt: skip
    until = rest.index("--") if "--" in rest else len(rest)
    if command.allow_interspersed_args is False:  # the rest is another program's
        until = next((i for i, word in enumerate(rest) if not word.startswith("-")), until)
    used = {word.partition("=")[0] for word in rest[:until] if word.startswith("--")}
    assert used <= options, f"{page}: {' '.join(names)} has no {', '.join(used - options)}"


@pytest.mark.parametrize(
    "line", sorted({line for _, line in ours() if "|" not in line and "..." not in line})
)
def test_what_can_run_here_runs(line: str) -> None:
    given = words(line)
    _, _, names = resolve(given)
    if names not in RUNNABLE or (names == ("lab", "fault") and "--list" not in given):
        return
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 0, done.output


def test_options_of_slurm_commands_are_ours() -> None:
    named = {
        option
        for _, line in lines()
        for option in re.findall(r"(--fabric-[a-z]+)", line)
    }  # fmt: skip
    assert named <= SLURM_OPTIONS


def test_make_targets_and_tools_exist() -> None:
    text = "\n".join(page.read_text() for page in PAGES)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?\bmake ([a-z]+(?:-[a-z]+)*)`", text)) <= targets | {"clean"}
    for tool in set(re.findall(r"\b((?:tools|bench|examples)/[\w./-]+\w)", text)):
        assert (ROOT / tool).exists() or (ROOT / f"{tool}.py").exists(), tool


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, *sorted((ROOT / "docs" / "decisions").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
