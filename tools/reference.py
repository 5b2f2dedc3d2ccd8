"""The reference, made from the code, and all pages in one tree for mkdocs.

``python tools/reference.py DIRECTORY`` fills it; ``make docs`` then builds the site. What is made:
commands (from click), configuration (from config.py), errors and exit statuses, the trace's tables
(from store/schema), the Python interfaces (from their docstrings).
"""

import importlib
import inspect
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from fabricctl import __version__, config, errors
from fabricctl.cli.main import cli
from fabricctl.cli.manual import Names, walk
from fabricctl.store import schema

ROOT = Path(__file__).resolve().parents[1]
INTERFACES = ("fabricctl.clock", "fabricctl.state", "fabricctl_analysis")


def commands() -> str:
    """Every command with its options."""
    parts = [f"# Commands\n\nfabricctl {__version__}. Each is a man page, too."]
    for names, found in walk(("fabricctl",), cli):
        parts.append(_command(names, found))
    return "\n\n".join(parts) + "\n"


def _command(names: Names, found: click.Command) -> str:
    context = click.Context(found, info_name=" ".join(names))
    usage = " ".join([*names, *found.collect_usage_pieces(context)])
    text = inspect.cleandoc((found.help or "").partition("\f")[0]).replace("\b\n", "")
    lines = ["#" * min(len(names) + 1, 4) + f" {' '.join(names)}", f"```text\n{usage}\n```", text]
    records = [each.get_help_record(context) for each in found.get_params(context)]
    rows = [(name, doc) for name, doc in filter(None, records)]
    if rows:
        lines.append("| option | |\n|---|---|\n" + "\n".join(
            f"| `{_cell(name)}` | {_cell(doc)} |" for name, doc in rows))  # fmt: skip
    return "\n\n".join(lines)


def configuration() -> str:
    """Every key with its default and bounds."""
    lines = ["# Configuration keys", "", "| key | default | values | per partition | |",
             "|---|---|---|---|---|"]  # fmt: skip
    fallback = config.Config()
    for key, about in config.every_key():
        low, high, choices = about["low"], about["high"], about["choices"]
        bounds = ", ".join(choices) or (f"{low:g} to {high:g}" if low is not None else "")
        value = fallback.value(key)
        alone = "yes" if about["per_partition"] else ""
        cells = (f"`{key}`", f"`{_cell(str(value))}`", bounds, alone, _cell(about["doc"]))
        lines.append(f"| {' | '.join(cells)} |")
    variables = "Each can be set by `FABRICCTL_<SECTION>_<KEY>` in the environment as well."
    return "\n".join([*lines, "", variables, ""])


def statuses() -> str:
    """The tree of errors as it stands in errors.py."""
    tree = inspect.cleandoc(errors.__doc__ or "").replace("::\n", "").strip()
    return f"# Errors and exit statuses\n\n```text\n{tree}\n```\n"


def tables() -> str:
    """Every table and column of the trace."""
    parts = ["# Tables of the trace\n\n[data-format.md](../data-format.md) says how they are used."]
    for table in schema.TABLES:
        rows = "\n".join(
            f"| `{c.name}` | `{c.code}` | {_cell(c.unit)} | {_cell(c.doc)} |" for c in table.columns
        )
        head = f"## {table.name}\n\n{table.doc}\n\n| column | type | unit | |\n|---|---|---|---|\n"
        parts.append(head + rows)
    return "\n\n".join(parts) + "\n"


def interfaces() -> str:
    """What programs import."""
    parts = ["# Python"]
    for name in INTERFACES:
        module = importlib.import_module(name)
        parts.append(f"## {name}\n\n{inspect.cleandoc(module.__doc__ or '')}")
        parts += [f"### {name}.{each}\n\n{text}" for each, text in _public(module)]
    return "\n\n".join(parts) + "\n"


def _public(module: object) -> Iterator[tuple[str, str]]:
    for name in getattr(module, "__all__", ()):
        item = getattr(module, name)
        if not callable(item):
            continue
        try:
            shape = f"```python\n{name}{inspect.signature(item)}\n```\n\n"
        except (TypeError, ValueError):
            shape = ""
        yield name, shape + inspect.cleandoc(inspect.getdoc(item) or "")
        if inspect.isclass(item):
            for below, method in inspect.getmembers(item, inspect.isroutine):
                if not below.startswith("_") and method.__doc__:
                    yield f"{name}.{below}", inspect.cleandoc(method.__doc__)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


REFERENCE = {
    "commands": commands, "configuration-keys": configuration, "errors": statuses,
    "trace-tables": tables, "python": interfaces,
}  # fmt: skip


def main() -> None:
    """Fills the directory named on the command line."""
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target)
    readme = (ROOT / "README.md").read_text().replace("(docs/", "(")
    for here, there in (
        ("(CONTRIBUTING.md)", "(contributing.md)"),
        ("(decisions/)", "(decisions/0001-journal-then-hdf5.md)"),
    ):
        readme = readme.replace(here, there)
    (target / "index.md").write_text(readme)
    (target / "contributing.md").write_text((ROOT / "CONTRIBUTING.md").read_text())
    (target / "changelog.md").write_text((ROOT / "CHANGELOG.md").read_text())
    examples = target / "examples"
    shutil.copytree(ROOT / "examples", examples, ignore=shutil.ignore_patterns("__pycache__"))
    for page in target.rglob("*.md"):
        page.write_text(page.read_text().replace("](../examples/", "](examples/"))
    (target / "reference").mkdir()
    for name, make in REFERENCE.items():
        (target / "reference" / f"{name}.md").write_text(make())


if __name__ == "__main__":
    main()
