"""Options of every command that enqueues jobs."""

from dataclasses import dataclass
from typing import Annotated

import typer

MaxRetries = Annotated[
    int | None, typer.Option(help="Retries after failures; default from settings.")
]
ExpiresIn = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="End as expired unless done within 90 (seconds), 10m or 2h."),
]


@dataclass(frozen=True)
class JobOptions:
    """The provider, and the options of the jobs."""

    provider: Annotated[str | None, typer.Option(help="Provider; default from settings.")] = None
    model: Annotated[str | None, typer.Option(help="Model; default: the provider's.")] = None
    bulk: Annotated[bool, typer.Option("--bulk", help="Let interactive jobs go first.")] = False
    max_retries: MaxRetries = None
    expires_in: ExpiresIn = None
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")] = True
