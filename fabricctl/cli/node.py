"""``fabricctl node``: the node service, and what other commands ask of a node."""

import json
import os
import sys
from collections.abc import Mapping

import click


@click.group()
def command() -> None:
    """The service that runs on every compute node (systemd starts it; see site-config/)."""


@command.command()
def serve() -> None:
    """Run the node service in the foreground until SIGTERM."""
    from fabricctl.node.service import main

    main()


@command.command()
def push() -> None:
    """Report to fabricd until SIGTERM, as a user without privileges (head.* in fabricctl.toml)."""
    import time

    from fabricctl import config
    from fabricctl.errors import UsageError
    from fabricctl.fleet.head.push import Pusher, read_key

    settings = config.load()
    if not settings.head.address:
        raise UsageError("node push: head.address in fabricctl.toml names no host")
    pusher = Pusher(settings, _name(), read_key(settings.head.key_file))
    try:
        while True:
            begin_s = time.monotonic()
            pusher.turn()
            pusher.wait(pusher.pace.next_s() - (time.monotonic() - begin_s))
    finally:
        pusher.close()


@command.command()
@click.option("--json", "as_json", is_flag=True, help="One line, for `fabricctl inventory take`.")
@click.option("--parts", is_flag=True, help="Short lines that srun does not tear.")
def facts(as_json: bool, parts: bool) -> None:
    """What this host has: kernel, CPUs, memory, interfaces, HCAs, GPUs, disks, cables (LLDP)."""
    from fabricctl.fleet.inventory.facts import gather

    found = gather()
    if parts:
        _say({"facts": found})
        return
    if as_json:
        click.echo(json.dumps({"v": 1, "node": _name(), "facts": found}, separators=(",", ":")))
        return
    wide = max(map(len, found))
    for key, value in found.items():
        click.echo(f"{key:{wide}}  {value}")


@command.command(name="audit-self")
def audit_self() -> None:
    """What this host finds out about itself; one line, for `fabricctl audit`."""
    from dataclasses import asdict

    from fabricctl import config
    from fabricctl.fleet.audit import local

    settings = config.load()
    found = [asdict(check) for check in local.checks(_name(), settings)]
    _say({"checks": found, "rails": local.rail_addresses(settings)})


@command.command(name="audit-links")
def audit_links() -> None:
    """Probe other nodes on every rail and answer them; `fabricctl audit` says whom, on stdin."""
    from dataclasses import asdict

    from fabricctl.errors import DataError
    from fabricctl.fleet.audit import probes
    from fabricctl.fleet.audit.run import assert_texts

    try:
        given = json.loads(sys.stdin.read())
        table, port = given["table"], int(given["port"])
        cookie = bytes.fromhex(given["cookie"])
        for rails in table.values():
            assert_texts(rails)
        if _name() not in table or len(cookie) != 16 or not 1024 <= port < 65536:
            raise ValueError("not for this node")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"audit-links: stdin is not what `fabricctl audit` writes: {error}"
        ) from None
    found = probes.measure(_name(), table, port, cookie)
    _say({"pairs": [asdict(pair) for pair in found]})


@command.command(name="audit-pairs")
def audit_pairs() -> None:
    """Measure with other nodes, one at a time; `fabricctl audit --full` says whom, on stdin."""
    from fabricctl.errors import DataError
    from fabricctl.fleet.audit.full import answer
    from fabricctl.fleet.audit.run import assert_texts

    try:
        given = json.loads(sys.stdin.read())
        table = given["table"]
        for rails in table.values():
            assert_texts(rails)
        if _name() not in table or not 1024 <= int(given["port"]) < 65536:
            raise ValueError("not for this node")
        found = answer(table, _name(), given)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"audit-pairs: stdin is not what `fabricctl audit` writes: {error}"
        ) from None
    _say({"links": found})


@command.command(name="rail-out")
@click.argument("rail")
@click.argument("why")
def rail_out(rail: str, why: str) -> None:
    """Exclude RAIL (an interface) from the jobs of this node, as `fabricctl health` asks."""
    from fabricctl.fleet.health.rails import exclude

    click.echo(exclude(rail, why))


@command.command(name="rail-in")
@click.argument("rail")
def rail_in(rail: str) -> None:
    """Let RAIL carry traffic again, if it was `fabricctl health` that excluded it."""
    from fabricctl.fleet.health.rails import include

    click.echo(include(rail))


def _name() -> str:
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename.partition(".")[0]


def _say(what: Mapping[str, object]) -> None:
    from fabricctl.fleet.lines import split

    click.echo(split(_name(), what), nl=False)
