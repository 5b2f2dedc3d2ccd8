"""``fabricctl site``: what this machine needs and has."""

import click


@click.group()
def command() -> None:
    """Check what this machine needs and has."""
