"""The command line. It is the roof: it may import everything, nothing imports it."""

from __future__ import annotations

import click

from tidegate.cli.serve import serve
from tidegate.version import __version__

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tidegate")
def main() -> None:
    """Model services that batch on their own."""


main.add_command(serve)
