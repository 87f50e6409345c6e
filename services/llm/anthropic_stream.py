"""The stream of Anthropic's messages."""

from typing import Any

from promptstack.services.llm.answers import Usage
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.reading import Part
from promptstack.services.llm.streaming import Assembly, word_in


class MessageAssembly(Assembly):
    """A message from its events: each block of its content has a beginning and deltas."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._message: dict[str, Any] = {}
        self._usage: dict[str, Any] = {}
        self._blocks: dict[Any, dict[str, Any]] = {}
        self._arguments: dict[Any, str] = {}

    def take(self, event: Part) -> None:
        """Take an event. The answer ends with the delta of the message; then it is said again."""
        match event.get("type"):
            case "message_start":
                self._message = dict(event.part("message").fields or {})
                self._count(event.part("message").part("usage"))
            case "content_block_start":
                block = dict(event.part("content_block").fields or {})
                self._blocks[event.get("index")] = block
                self.listener.hear(word_in(block, "text"))
            case "content_block_delta":
                self._take_delta(event.get("index"), event.part("delta").fields or {})
            case "message_delta":
                self._message |= event.part("delta").fields or {}
                self._count(event.part("usage"))
                self.is_complete = self.is_complete or bool(self._message.get("stop_reason"))
            case "message_stop":
                self.is_complete = True
            case _:
                self.take_error(event)

    def _take_delta(self, index: Any, delta: Any) -> None:
        block = self._blocks.setdefault(index, {"type": "text", "text": ""})
        text = word_in(delta, "text")
        if text:
            block["text"] = word_in(block, "text") + text
            self.listener.hear(text)
        written = word_in(delta, "partial_json")
        if written:
            self._arguments[index] = self._arguments.get(index, "") + written
        self.listener.hear_hidden(written + word_in(delta, "thinking"))

    def _count(self, usage: Part) -> None:
        """Take the counts of an event; those that it leaves out stay as they were."""
        given = usage.fields or {}
        self._usage |= {name: count for name, count in given.items() if count is not None}
        counted = Part(self._usage, usage.notes)
        parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
        fresh, cached, written = (counted.count(name, 0) or 0 for name in parts)
        self.told(
            Usage(
                input_tokens=(fresh + cached + written) or None,
                output_tokens=counted.count("output_tokens", 0),
                cached_tokens=cached,
                cache_write_tokens=written,
            )
        )

    def whole(self) -> dict[str, Any]:
        """The message."""
        content = [
            {**block, "input": self._arguments[index]} if index in self._arguments else block
            for index, block in self._blocks.items()
        ]
        return {**self._message, "content": content, "usage": self._usage}
