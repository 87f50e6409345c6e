"""An answer that comes as a stream of events.

Its events are put together to the answer that would have come at once. So all that reads answers
reads streams as well, and what is stored is the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

from promptstack.services.llm.answers import Usage
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.reading import WRONG_FORM, Notes, Part, parse
from promptstack.services.llm.server_sent_events import EventReader

DONE = "[DONE]"


class Assembly(ABC):
    """Puts the events of one answer together. A wire says how."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.error: Mapping[str, Any] | None = None
        """What the provider said if it broke the answer off."""
        self.is_complete = False
        """Whether the event has come that ends the answer; usage may follow."""

    @abstractmethod
    def take(self, event: Part) -> None:
        """Take an event, and let the listener hear what it has of the text."""

    @abstractmethod
    def whole(self) -> dict[str, Any]:
        """The answer as it would have come at once."""

    def told(self, usage: Usage) -> None:
        """Let the listener know what the provider says of usage so far."""
        self.listener.told(usage)

    def take_error(self, event: Part) -> bool:
        """Whether an event is an error, in a form that several wires have."""
        error = event.get("error")
        if not error and event.get("object") != "error":
            return False
        said = error or event.fields or {}
        self.error = said if isinstance(said, dict) else {"message": str(said)}
        return True


class StreamedAnswer:
    """Hears the bytes of an answer, for the transport: see `heard_by`."""

    def __init__(self, assembly: Assembly) -> None:
        self._assembly = assembly
        self._events = EventReader()
        self.has_begun = False
        """Whether the server answered with a stream."""

    @property
    def is_complete(self) -> bool:
        """Whether all of the answer is here."""
        return self._assembly.is_complete

    def begin(self) -> None:
        """A stream begins."""
        self.has_begun = True

    def hear(self, part: bytes) -> None:
        """Take the next bytes."""
        for data in self._events.feed(part):
            self._take(data)

    def end(self) -> None:
        """There are no more."""
        for data in self._events.end():
            self._take(data)

    def _take(self, data: str) -> None:
        if data.strip() == DONE:
            self._assembly.is_complete = True
            return
        try:
            self._assembly.take(parse(data.encode(errors="surrogatepass")))
        except WRONG_FORM:
            return  # an event in a form that nobody can read; the text goes on without it


NewAssembly = Callable[[Listener], Assembly]


def text_in(fields: Any, name: str) -> str:
    """The text in a field of a part of an event; empty where there is none."""
    return Part(fields if isinstance(fields, dict) else None, Notes()).text(name) or ""


def word_in(fields: Any, name: str) -> str:
    """A field that is a text."""
    found = fields.get(name) if isinstance(fields, dict) else None
    return found if isinstance(found, str) else ""
