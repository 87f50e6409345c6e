"""Hears the text of an answer while it comes from a provider."""

from collections.abc import Callable

from promptstack.services.llm.answers import BYTES_PER_TOKEN, Usage
from promptstack.services.text import make_storable

_HIGH_SURROGATES = ("\ud800", "\udbff")


def _nothing() -> None:
    """Do nothing."""


class Listener:
    """Shows a text as it comes, and knows what a call took that is cut off.

    What it shows is what will be stored: the same characters are replaced.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self._show = show
        self._half = ""
        self._bytes = 0
        self._told: Usage | None = None
        self.on_sign: Callable[[], None] = _nothing
        """Called whenever some of the answer has come: whoever waits may wait on."""

    def begin(self) -> None:
        """Note that a call leaves; what the one before it said does not count any more."""
        self._half, self._bytes, self._told = "", 0, None

    def hear(self, text: str) -> None:
        """Take the next piece of the text."""
        self.hear_hidden(text)
        text = self._half + text
        self._half = ""
        if text and _HIGH_SURROGATES[0] <= text[-1] <= _HIGH_SURROGATES[1]:
            # A character may come in two halves.
            text, self._half = text[:-1], text[-1]
        if text:
            whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
            self._show(make_storable(whole))

    def hear_hidden(self, text: str) -> None:
        """Take what is paid for and no text, such as the arguments of a tool's call."""
        if text:
            self._bytes += len(text.encode("utf-8", "surrogatepass"))
            self.on_sign()

    def told(self, usage: Usage) -> None:
        """Note what the provider says that the call has taken so far."""
        self._told = usage

    def usage(self, input_tokens: int) -> Usage | None:
        """What the call took so far, as an estimate; None if nothing of its answer has come.

        `input_tokens` is an estimate too, for where the provider has not said it.
        """
        if not self._bytes:
            return None
        told = self._told or Usage(None, None)
        counted = -(-self._bytes // BYTES_PER_TOKEN)
        return Usage(
            input_tokens=input_tokens if told.input_tokens is None else told.input_tokens,
            output_tokens=max(counted, told.output_tokens or 0),
            cached_tokens=told.cached_tokens or 0,
            cache_write_tokens=told.cache_write_tokens or 0,
        )
