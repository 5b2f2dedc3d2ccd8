"""``fabricctl head``: the head service."""

import click


@click.group()
def command() -> None:
    """fabricd, which gathers what all nodes report (systemd starts it; see site-config/)."""


@command.command()
def serve() -> None:
    """Run fabricd in the foreground until SIGTERM, as a user without privileges."""
    from fabricctl import config
    from fabricctl.fleet.head.push import read_key
    from fabricctl.fleet.head.service import serve as run
    from fabricctl.slurm.choose import open_slurm

    settings = config.load()
    run(settings, read_key(settings.head.key_file), open_slurm)


@command.command()
def key() -> None:
    """Print a new key for head.key_file: to be the same on every node, readable to few."""
    import secrets

    click.echo(secrets.token_hex(32))


@command.command()
@click.argument("what", type=click.Choice(["snapshot", "status", "metrics"]))
def ask(what: str) -> None:
    """What fabricd on this host knows, as far as you may see it: JSON, or OpenMetrics."""
    from fabricctl import config
    from fabricctl.fleet.head.service import ask as question

    click.echo(question(config.load().head.socket, what).decode(), nl=what != "metrics")
