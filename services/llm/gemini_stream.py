"""The stream of Gemini: each event has the form of an answer, with the next part of it."""

from typing import Any

from promptstack.services.llm.answers import Usage
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.reading import Part
from promptstack.services.llm.streaming import Assembly


class ContentAssembly(Assembly):
    """A content from its parts. Only the first candidate counts, as nobody asks for more."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._facts: dict[str, Any] = {}
        self._candidate: dict[str, Any] = {}
        self._parts: list[Any] = []

    def take(self, event: Part) -> None:
        """Take an event. The answer ends with the one that says why it ends."""
        if self.take_error(event):
            return
        for name in ("usageMetadata", "modelVersion", "responseId", "promptFeedback"):
            if event.get(name) is not None:
                self._facts[name] = event.get(name)
        usage = event.part("usageMetadata")
        if usage.get("promptTokenCount") is not None:
            made = (usage.count("candidatesTokenCount", 0), usage.count("thoughtsTokenCount", 0))
            self.told(
                Usage(
                    input_tokens=usage.count("promptTokenCount"),
                    output_tokens=sum(count or 0 for count in made),
                    cached_tokens=usage.count("cachedContentTokenCount", 0),
                )
            )
        if event.part("promptFeedback").get("blockReason"):
            self.is_complete = True
        for candidate in event.parts("candidates")[:1]:
            self._take_candidate(candidate)

    def _take_candidate(self, candidate: Part) -> None:
        self._candidate |= candidate.fields or {}
        for part in candidate.part("content").parts("parts"):
            self._parts.append(part.fields)
            text = part.text("text") or ""
            if part.get("thought") is True:
                self.listener.hear_hidden(text)
            else:
                self.listener.hear(text)
            if part.get("functionCall"):
                self.listener.hear_hidden(str(part.get("functionCall")))
        if candidate.get("finishReason"):
            self.is_complete = True

    def whole(self) -> dict[str, Any]:
        """The answer."""
        if not self._candidate:
            return {**self._facts, "candidates": []}
        content = {"role": "model", "parts": self._parts}
        return {**self._facts, "candidates": [{**self._candidate, "content": content}]}
