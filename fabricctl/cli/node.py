"""``fabricctl node``: the node service."""

import click


@click.group()
def command() -> None:
    """The service that runs on every compute node (systemd starts it; see site-config/)."""


@command.command()
def serve() -> None:
    """Run the node service in the foreground until SIGTERM."""
    from fabricctl.node.service import main

    main()
