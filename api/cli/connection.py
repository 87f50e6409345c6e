"""How a command reaches the servers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from promptstack.api.cli.terminal import err
from promptstack.config.logging import configure_logging
from promptstack.config.settings import Settings, get_settings
from promptstack.embedded.servers import EmbeddedServers, running
from promptstack.repositories.migrations import upgrade
from promptstack.tasks.composition import PromptStack


@contextmanager
def connected(*, start_servers: bool = False) -> Iterator[PromptStack]:
    """Open a `PromptStack` for a command.

    Where no settings name servers, it joins the embedded ones that run here. Where none run,
    `start_servers` starts them for the length of the command. A command that needs a worker leaves
    it out, and ends with a sentence.
    """
    settings = get_settings()
    configure_logging(settings, quiet=True)
    if not needs_embedded(settings):
        with PromptStack.open(settings) as stack:
            yield stack
    elif start_servers or running(settings.state_dir):
        with embedded(settings) as stack:
            yield stack
    else:
        with PromptStack.open(settings) as stack:  # says that nothing is running
            yield stack


@contextmanager
def embedded(settings: Settings, state_dir: Path | None = None) -> Iterator[PromptStack]:
    """Join or start the embedded servers, with the newest schema, while the context is open."""

    def notify(message: str) -> None:
        err.print(message, markup=False)

    with EmbeddedServers(state_dir or settings.state_dir, notify=notify) as urls:
        database_url = settings.database_url or urls.database_url
        with PromptStack(settings, database_url, settings.redis_url or urls.redis_url) as stack:
            if settings.database_url is None:
                upgrade(stack.ledger.engine)
            yield stack


def needs_embedded(settings: Settings) -> bool:
    """Whether the settings leave out a server."""
    return settings.database_url is None or settings.redis_url is None
