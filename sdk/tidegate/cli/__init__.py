"""The command line. It is the roof: it may import everything, nothing imports it."""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

import click

from tidegate.version import __version__

__all__ = ["main"]

COMMANDS = ("bench", "info", "run", "serve")


class Commands(click.Group):
    """Each in a module of its own, which is loaded, with the doors that it opens, when the command is meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"tidegate.cli.{cmd_name}"), cmd_name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C, where the command does not see to it, ends it as it ends any other program."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tidegate")
def main() -> None:
    """Model services that batch on their own."""
