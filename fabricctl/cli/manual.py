"""``fabricctl manual``: man pages and shell completion, made from the commands themselves."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import click

from fabricctl import __version__
from fabricctl.errors import SystemRefusedError

SHELLS = ("bash", "zsh", "fish")


@click.group()
def command() -> None:
    """Man pages and shell completion, made from the commands themselves."""


@command.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--dry-run", is_flag=True, help="Say which files would be written.")
def pages(directory: Path, dry_run: bool) -> None:
    """Write a page for each command into DIRECTORY, e.g. /usr/local/share/man/man1."""
    from fabricctl.cli.main import cli

    made = {f"{'-'.join(names)}.1": page(names, each) for names, each in walk(("fabricctl",), cli)}
    for name, text in made.items():
        if dry_run:
            click.echo(directory / name)
            continue
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise SystemRefusedError(f"manual: {directory / name}: {error.strerror}") from None
    if not dry_run:
        click.echo(f"fabricctl: wrote {len(made)} pages into {directory}", err=True)


@command.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print what SHELL needs to complete commands and options.

    bash: fabricctl manual completion bash > /etc/bash_completion.d/fabricctl
    """
    from click.shell_completion import get_completion_class

    from fabricctl.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise TypeError(f"click has no completion for {shell}")
    click.echo(kind(cli, {}, "fabricctl", "_FABRICCTL_COMPLETE").source())


Names = tuple[str, ...]


def walk(names: Names, found: click.Command) -> Iterator[tuple[Names, click.Command]]:
    """Every command below, with the words that call it."""
    yield names, found
    if isinstance(found, click.Group):
        with click.Context(found, info_name=names[-1]) as context:
            below = [(name, found.get_command(context, name))
                     for name in found.list_commands(context)]  # fmt: skip
        for name, each in below:
            if each is not None and not each.hidden:
                yield from walk((*names, name), each)


def page(names: Names, found: click.Command) -> str:
    """One page, in man(7)'s macros."""
    title = "-".join(names)
    context = click.Context(found, info_name=" ".join(names))
    usage = found.collect_usage_pieces(context)
    text = inspect.cleandoc((found.help or "").partition("\f")[0])
    first = text.split("\n\n")[0].replace("\n", " ").rstrip(".")
    lines = [
        f'.TH "{_roff(title.upper())}" "1" "" "fabricctl {__version__}" "fabricctl"',
        ".SH NAME",
        f"{_roff(title)} \\- {_roff(first)}",
        ".SH SYNOPSIS",
        f".B {_roff(' '.join(names))}",
        _roff(" ".join(usage)),
        ".SH DESCRIPTION",
        *_paragraphs(text),
    ]
    options = [each.get_help_record(context) for each in found.get_params(context)]
    shown = [each for each in options if each is not None]
    if shown:
        lines.append(".SH OPTIONS")
        for name, doc in shown:
            lines += [".TP", f".B {_roff(name)}", _roff(doc or "")]
    if isinstance(found, click.Group):
        lines += _below(names, found, context)
    lines += [".SH SEE ALSO", _roff(_parent(names))]
    return "\n".join([*lines, ""])


def _below(names: Names, found: click.Group, context: click.Context) -> Iterator[str]:
    yield ".SH COMMANDS"
    for name in found.list_commands(context):
        each = found.get_command(context, name)
        if each is not None and not each.hidden:
            yield from (".TP", f".BR {_roff('-'.join((*names, name)))} (1)",
                        _roff(each.get_short_help_str(200)))  # fmt: skip


def _parent(names: Names) -> str:
    above = "-".join(names[:-1])
    return f"{above}(1)" if above else "The project's documentation: docs/."


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield ".PP"
        yield _roff(" ".join(paragraph.replace("\b\n", "").split()))


def _roff(text: str) -> str:
    """Text as troff shows it: no control lines, no escapes, and hyphens that can be copied."""
    clean = re.sub(r"\s+", " ", text).replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{clean}" if clean[:1] in (".", "'") else clean
