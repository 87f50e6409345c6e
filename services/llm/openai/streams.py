"""The streams of OpenAI's chat completions and Responses API."""

import json
from typing import Any

from promptstack.services.llm.listening import Listener
from promptstack.services.llm.openai.chat import usage_of
from promptstack.services.llm.reading import Part
from promptstack.services.llm.streaming import Assembly, text_in, word_in

HIDDEN = ("refusal", "reasoning_content", "reasoning")
ENDS = frozenset({"response.completed", "response.incomplete"})
BREAKS = frozenset({"response.failed", "response.cancelled"})


class ChatAssembly(Assembly):
    """A chat completion from its chunks. Only the first choice counts, as nobody asks for more."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._facts: dict[str, Any] = {}
        self._texts: dict[str, str] = {}
        self._calls: list[dict[str, Any]] = []
        self._reason: Any = None
        self._has_choice = False

    def take(self, event: Part) -> None:
        """Take a chunk. The answer ends with the chunk that has a reason; then comes its usage."""
        if self.take_error(event):
            return
        for name in ("id", "model", "usage"):
            if event.get(name):
                self._facts[name] = event.get(name)
        if event.get("usage"):
            self.told(usage_of(event, "prompt_tokens", "completion_tokens"))
        for choice in event.parts("choices"):
            if not choice.get("index"):
                self._take_choice(choice)

    def _take_choice(self, choice: Part) -> None:
        self._has_choice = True
        delta = choice.get("delta")
        text = text_in(delta, "content")
        if isinstance(delta, dict) and delta.get("content") is not None:
            self._texts["content"] = self._texts.get("content", "") + text
        self.listener.hear(text)
        for name in HIDDEN:
            if found := word_in(delta, name):
                self._texts[name] = self._texts.get(name, "") + found
                self.listener.hear_hidden(found)
        for call in choice.part("delta").parts("tool_calls"):
            self._take_call(call)
        if choice.get("finish_reason"):
            self._reason = choice.get("finish_reason")
            self.is_complete = True

    def _take_call(self, given: Part) -> None:
        index, id_ = given.get("index"), given.get("id")
        known = [call for call in self._calls if call["index"] == index]
        if index is None:  # some servers don't number them
            known = [call for call in self._calls[-1:] if id_ in {None, "", call["id"]}]
        if not known:
            self._calls.append({"index": index, "id": None, "name": None, "arguments": ""})
            known = self._calls[-1:]
        [call] = known[-1:]
        function = given.part("function")
        call["id"] = call["id"] or id_
        call["name"] = call["name"] or function.get("name")
        arguments = function.get("arguments")
        text = json.dumps(arguments) if isinstance(arguments, dict) else arguments
        if isinstance(text, str):
            call["arguments"] += text
            self.listener.hear_hidden(text)

    def whole(self) -> dict[str, Any]:
        """The chat completion."""
        message: dict[str, Any] = {"role": "assistant", "content": self._texts.get("content")}
        if "refusal" in self._texts:
            message["refusal"] = self._texts["refusal"]
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": call["arguments"]},
                }
                for call in self._calls
            ]
        choice = {"index": 0, "message": message, "finish_reason": self._reason}
        return {**self._facts, "choices": [choice] if self._has_choice else []}


class ResponseAssembly(Assembly):
    """An answer of the Responses API, which stands whole in its last event."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener)
        self._response: dict[str, Any] = {}

    def take(self, event: Part) -> None:
        """Take an event."""
        kind = event.get("type")
        if kind in ENDS:
            self._response = dict(event.part("response").fields or {})
            self.is_complete = True
        elif kind in BREAKS:
            self.error = event.part("response").part("error").fields or {}
        elif kind == "error":
            self.error = event.get("error") or event.fields or {}
        elif kind == "response.output_text.delta":
            self.listener.hear(word_in(event.fields, "delta"))
        elif isinstance(kind, str) and kind.endswith(".delta"):
            self.listener.hear_hidden(word_in(event.fields, "delta"))
        else:
            self.take_error(event)

    def whole(self) -> dict[str, Any]:
        """The answer."""
        return self._response
