"""Options of every command that enqueues jobs."""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer

MaxRetries = Annotated[
    int | None, typer.Option(help="Retries after failures; default from settings.")
]
ExpiresIn = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="End as expired unless done within 90 (seconds), 10m or 2h."),
]

Collection = Annotated[
    str | None, typer.Option(metavar="NAME", help="Where it is kept; `default` when left out.")
]


@dataclass(frozen=True)
class JobOptions:
    """The provider, and the options of the jobs."""

    provider: Annotated[str | None, typer.Option(help="Provider; default from settings.")] = None
    model: Annotated[str | None, typer.Option(help="Model; default: the provider's.")] = None
    bulk: Annotated[bool, typer.Option("--bulk", help="Let interactive jobs go first.")] = False
    max_retries: MaxRetries = None
    expires_in: ExpiresIn = None
    tags: Annotated[
        list[str] | None, typer.Option("--tag", help="A word to find it by; may be repeated.")
    ] = None
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")] = True


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the fields of each of its dataclass parameters as options of its own."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    shown: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        of_group = signature(groups[name]).parameters.values() if name in groups else [parameter]
        shown += [one.replace(kind=Parameter.KEYWORD_ONLY) for one in of_group]

    @wraps(command)
    def run(**given: Any) -> None:
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**given, **made)

    run.__signature__ = Signature(shown)  # type: ignore[attr-defined]  # typer reads this one
    return run
