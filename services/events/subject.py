"""One job or run that is watched, and all who watch it."""

from uuid import UUID

from promptstack.services.events.places import Look
from promptstack.services.events.topics import Topic
from promptstack.services.events.watcher import Watcher


class Subject:
    """One job or run that is watched."""

    def __init__(self, topic: Topic, one: UUID) -> None:
        self.topic = topic
        self.id = one
        self.watchers: set[Watcher] = set()
        self.look: Look | None = None
        self.looked_at = 0.0
        self.due_at = 0.0
        self.has_ended = False
        """Whether somebody said so; the ledger has not been asked yet."""

    @property
    def only_end(self) -> bool:
        """Whether nobody wants to know its states."""
        return all(watcher.only_end for watcher in self.watchers)

    def show(self, look: Look, now: float) -> None:
        """Show all watchers where it stands."""
        self.look, self.looked_at = look, now
        if not look.is_final:
            for watcher in self.watchers:
                watcher.show(look)
