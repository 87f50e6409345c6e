"""Commands that are imported when they are called: for help and completion their names will do."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from promptstack.api.cli.entry import raise_on_ctrl_c
from promptstack.api.cli.options.jobs import with_groups
from promptstack.config.loading import load

PLAIN: Any = {"rich_markup_mode": None}
"""Typer's boxes leave little room for words, and name flags <bool>."""


@dataclass(frozen=True)
class Command:
    """A command as help shows it, and where its function is."""

    function: str
    """Below `promptstack.api.cli`, as `jobs.commands:show`."""
    help: str
    """The first paragraph of the function's docstring."""
    context_settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A command that has commands of its own."""

    help: str
    commands: Mapping[str, Command]


class LazyCommand(TyperCommand):
    """Stands for a command in its group; a context made for it is one of the command itself."""

    def __init__(self, name: str, declared: Command) -> None:
        super().__init__(name, help=declared.help, **PLAIN)
        self._declared = declared

    def load(self) -> Any:
        """Import the command. It ends without a traceback for one of our own errors."""
        module, _, name = self._declared.function.partition(":")
        function = getattr(load(f"promptstack.api.cli.{module}"), name)
        plain_errors = load("promptstack.api.cli.terminal").plain_errors
        raise_on_ctrl_c()
        alone = typer.Typer(add_completion=False, **PLAIN)
        command = alone.command(self.name, context_settings={**self._declared.context_settings})
        command(plain_errors()(with_groups(function)))
        return get_command(alone)

    def make_context(self, *arguments: Any, **more: Any) -> Any:
        """Read the arguments, as the command itself does."""
        return self.load().make_context(*arguments, **more)


def lazy_commands(table: Mapping[str, Command | Group]) -> dict[str, Any]:
    """The commands and groups of a table."""
    return {name: _lazy(name, declared) for name, declared in table.items()}


def _lazy(name: str, declared: Command | Group) -> Any:
    if isinstance(declared, Command):
        return LazyCommand(name, declared)
    commands = lazy_commands(declared.commands)
    return TyperGroup(
        name=name, help=declared.help, commands=commands, no_args_is_help=True, **PLAIN
    )
