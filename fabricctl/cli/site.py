"""``fabricctl site``: what this machine needs and has, and whether Slurm uses us."""

import difflib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fabricctl.slurm.siteconf import Edit

JSON_VERSION = 1
SLURM_CONF = "/etc/slurm/slurm.conf"


@click.group()
def command() -> None:
    """Check what this machine needs and has; turn protection on and off."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts; see docs/configuration.md.")
def check(as_json: bool) -> None:
    """Look at Slurm, the plugin, munge, the node service and the directories on this host.

    One line each: ok, warn or fail, and what to do. Exit status 1 when one of them fails.
    """
    from fabricctl import config
    from fabricctl.cli import site_checks

    found = []
    for each in site_checks.run_all(config.load()):
        found.append(each)
        if not as_json:  # as each check ends: some wait for an answer for seconds
            todo = f": {each.todo}" if each.todo else ""
            click.echo(f"{each.status:5} {each.name:12} {each.found}{todo}")
    worst = max((each.status for each in found), key=("ok", "warn", "fail").index)
    if as_json:
        checks = [asdict(each) for each in found]
        click.echo(json.dumps({"version": JSON_VERSION, "status": worst, "checks": checks}))
    sys.exit(1 if worst == "fail" else 0)


_conf = click.option(
    "--slurm-conf", type=click.Path(path_type=Path, dir_okay=False), envvar="SLURM_CONF",
    default=Path(SLURM_CONF), show_default=True, help="The file to change.",
)  # fmt: skip
_partition = click.option(
    "--partition", "partitions", multiple=True, metavar="NAME",
    help="This partition alone, in fabricctl.toml; may be given more than once.",
)  # fmt: skip
_dry_run = click.option("--dry-run", is_flag=True, help="Show the changes as a diff, make none.")


@command.command()
@_partition
@click.option("--mode", type=click.Choice(["observe", "on"]), default="on", show_default=True,
              help="The most that is done for jobs of the partition.")  # fmt: skip
@_conf
@_dry_run
def enable(partitions: tuple[str, ...], mode: str, slurm_conf: Path, dry_run: bool) -> None:
    """Have Slurm use the plugin, prolog and epilog; with --partition, protect its jobs again.

    A Prolog, Epilog or PrologFlags of the site's own stays in force. What is added stands between
    two marks. Then: scontrol reconfigure. Does nothing where all is done.
    """
    from fabricctl.slurm import siteconf
    from fabricctl.slurm.choose import open_slurm

    if partitions:
        _set_partitions(partitions, mode, dry_run)
        return
    version = open_slurm("commands").version
    _carry_out(siteconf.enabling(slurm_conf, version.series), dry_run, "scontrol reconfigure")


@command.command()
@_partition
@_conf
@_dry_run
def disable(partitions: tuple[str, ...], slurm_conf: Path, dry_run: bool) -> None:
    """Take away what `site enable` put into Slurm's files; with --partition, protect no job there.

    Jobs that run are protected to their end. A job of a partition that is disabled runs as it is,
    and is told so when it asked for protection.
    """
    from fabricctl.slurm import siteconf

    if partitions:
        _set_partitions(partitions, "off", dry_run)
    elif slurm_conf.exists():
        _carry_out(siteconf.disabling(slurm_conf), dry_run, "scontrol reconfigure")


def _set_partitions(partitions: tuple[str, ...], mode: str, dry_run: bool) -> None:
    from fabricctl import config
    from fabricctl.cli.site_partition import with_mode
    from fabricctl.slurm.siteconf import Edit

    in_force = config.load()
    file = in_force.source or Path(os.environ.get("FABRICCTL_CONFIG") or config.DEFAULT_FILE)
    before = file.read_bytes().decode() if in_force.source else None  # line ends as they are
    after = before or ""
    for name in partitions:
        config.check_partition(name)
        after = with_mode(after, name, mode, str(file))
    edits = [] if after == before else [Edit(file, before, after)]
    _carry_out(
        edits, dry_run, "systemctl restart fabricctl-node on its nodes (no job is disturbed)"
    )


def _carry_out(edits: "Sequence[Edit]", dry_run: bool, then: str) -> None:
    from fabricctl.slurm import siteconf

    for edit in edits:
        if edit.link is not None:
            what = "-" if edit.after is None else "+"
            click.echo(f"{what}link {edit.path} -> {edit.link}")
        else:
            old, new = (edit.before or "").splitlines(), (edit.after or "").splitlines()
            name = str(edit.path)
            click.echo("\n".join(difflib.unified_diff(old, new, name, name, n=0, lineterm="")))
        if not dry_run:
            siteconf.carry_out(edit)
    if not edits:
        click.echo("fabricctl: nothing to change", err=True)
    elif not dry_run:
        click.echo(f"fabricctl: changed; now: {then}", err=True)
