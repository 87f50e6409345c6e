"""The events of a response as it comes, numbered so that a reader can go on after any of them.

Numbers follow from the text alone: each word is one event, however its pieces came. So every
process tells the same events by the same numbers, at any time, also of a response that has ended.
The text of each further try has numbers of its own, far above: what a reader has of an earlier try
is never taken for a part of the answer.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from uuid import UUID

from promptstack.repositories.models import JobState
from promptstack.services.openai.responses import (
    ResponseStatus,
    call_item,
    message_id,
    message_item,
    output_text,
    status_of,
)

NUMBERS_OF_A_TRY = 10_000_000
BEGAN_AGAIN = "answer_began_again"
BEGAN_AGAIN_WORDS = (
    "The answer began again after some of its text was sent: the first try broke off. Read the "
    "response when it has ended, or its stream from the start."
)
_WORD = re.compile(r"\s{1,32}\S{0,32}|\S{1,32}")
"""A word with the blanks before it; long ones are cut."""

ResponseEvent = dict[str, Any]
MakeResponse = Callable[[ResponseStatus], dict[str, Any]]
"""Makes the response as it is at a status before its end."""


class ResponseEvents:
    """What a reader is told of one response, in order. Each call returns the events that follow."""

    def __init__(
        self, one: UUID, make: MakeResponse, *, is_background: bool, after: int = -1
    ) -> None:
        """Take the number of the last event that the reader has."""
        self._one = one
        self._make = make
        self._is_background = is_background
        self._after = after
        self._next = 0
        self._attempt = 0
        """The try whose text was told last."""
        self._text = ""
        self._told = 0
        """Characters of the text that were told."""
        self._kept = ""
        """What was told of a text that has begun anew, while it is not all there again."""
        self.is_over = False
        """Whether nothing follows."""

    def begin(self) -> list[ResponseEvent]:
        """It was accepted."""
        first = ResponseStatus.QUEUED if self._is_background else ResponseStatus.IN_PROGRESS
        events = [self._event("response.created", response=self._make(first))]
        if self._is_background:
            events.append(self._event("response.queued", response=self._make(first)))
        return self._unknown(events)

    def run(self) -> list[ResponseEvent]:
        """A worker has it. Only the first call says so."""
        if self._next >= self._first_of(1):
            return []
        response = self._make(ResponseStatus.IN_PROGRESS)
        return self._unknown([self._event("response.in_progress", response=response)])

    def restart(self, attempt: int) -> list[ResponseEvent]:
        """The text begins anew, in this try or another one."""
        if self._told and attempt != self._attempt:
            return self._broken()
        self._kept = self._kept or self._text[: self._told]
        self._text = ""
        return []

    def text(self, piece: str, attempt: int) -> list[ResponseEvent]:
        """More of the text has come."""
        events = self.run()
        if self._told and attempt != self._attempt:
            return [*events, *self._broken()]
        if self._attempt != attempt and not self._enter(attempt):
            return [*events, *self._broken()]
        self._text += piece
        if not self._is_same():
            return [*events, *self._broken()]
        return events + self._unknown(self._words(is_whole=False))

    def end(
        self, state: JobState, result: Mapping[str, Any] | None, attempt: int, whole: dict[str, Any]
    ) -> list[ResponseEvent]:
        """The job has ended; `whole` is the response as it is then."""
        events = self.run()
        status = status_of(state, result)
        if status in {ResponseStatus.COMPLETED, ResponseStatus.INCOMPLETE}:
            return [*events, *self._answered(status, result or {}, attempt, whole)]
        # What it told of a text is in no ledger, and so doesn't count.
        self._next = self._first_of(attempt + 1)
        kind = "response.failed" if status is ResponseStatus.FAILED else "response.incomplete"
        self.is_over = True
        return events + self._unknown([self._event(kind, response=whole)])

    def _answered(
        self, status: str, result: Mapping[str, Any], attempt: int, whole: dict[str, Any]
    ) -> list[ResponseEvent]:
        text: str = result.get("text") or ""
        is_other_try = bool(self._told) and attempt != self._attempt
        if is_other_try or not text.startswith(self._kept or self._text[: self._told]):
            return self._broken()
        if self._attempt != attempt and not self._enter(attempt):
            return self._broken()
        self._text, self._kept = text, ""
        events = list(self._words(is_whole=True))
        if text or not result.get("tool_calls"):
            if not text:
                events += self._opened()
            events += self._closed(whole["output"][0])
        events += self._calls(result)
        events.append(self._event(f"response.{status}", response=whole))
        self.is_over = True
        return self._unknown(events)

    def _enter(self, attempt: int) -> bool:
        """Begin with the text of a try. False where the reader came with text of an earlier one."""
        self._attempt = attempt
        self._next = self._first_of(attempt)
        return not self._first_of(1) <= self._after < self._next

    def _first_of(self, attempt: int) -> int:
        """The number of the first event of a try's text."""
        return 2 + self._is_background + (attempt - 1) * NUMBERS_OF_A_TRY

    def _is_same(self) -> bool:
        """Whether the text that has begun anew is the one that was told, as far as it is there."""
        if not self._kept:
            return True
        if not self._text.startswith(self._kept[: len(self._text)]):
            return False
        if len(self._text) >= len(self._kept):
            self._kept = ""
        return True

    def _words(self, *, is_whole: bool) -> Iterator[ResponseEvent]:
        """The words that are there and were not told. The last one may go on, until it is whole."""
        if self._kept:
            return
        while self._told < len(self._text):
            found = _WORD.match(self._text, self._told)
            if found is None or (found.end() == len(self._text) and not is_whole):
                return
            if not self._told:
                yield from self._opened()
            self._told = found.end()
            yield self._event(
                "response.output_text.delta", **self._place(), delta=found.group(), logprobs=[]
            )

    def _opened(self) -> list[ResponseEvent]:
        item = message_item(self._one, "in_progress", [])
        return [
            self._event("response.output_item.added", output_index=0, item=item),
            self._event("response.content_part.added", **self._place(), part=output_text("")),
        ]

    def _closed(self, item: dict[str, Any]) -> list[ResponseEvent]:
        return [
            self._event("response.output_text.done", **self._place(), text=self._text, logprobs=[]),
            self._event("response.content_part.done", **self._place(), part=item["content"][0]),
            self._event("response.output_item.done", output_index=0, item=item),
        ]

    def _calls(self, result: Mapping[str, Any]) -> list[ResponseEvent]:
        events = []
        first = 1 if self._text else 0
        for number, call in enumerate(result.get("tool_calls") or ()):
            item = call_item(self._one, number, call)
            begun = {**item, "status": "in_progress", "arguments": ""}
            place = {"item_id": item["id"], "output_index": first + number}
            index, arguments = first + number, item["arguments"]
            named = {"name": item["name"], "arguments": arguments}
            events += [
                self._event("response.output_item.added", output_index=index, item=begun),
                self._event("response.function_call_arguments.delta", **place, delta=arguments),
                self._event("response.function_call_arguments.done", **place, **named),
                self._event("response.output_item.done", output_index=index, item=item),
            ]
        return events

    def error(self, said: Mapping[str, Any]) -> ResponseEvent:
        """Why this stream ends here, though the response may go on: who reads on misses nothing.

        It has the number of the last event that was told.
        """
        self.is_over = True
        known = {"code": said["code"], "message": said["message"], "param": said.get("param")}
        number = max(self._next - 1, self._after)
        # In both forms that clients read.
        error = {"type": said.get("type", "server_error"), **known}
        return {"type": "error", "sequence_number": number, **known, "error": error}

    def _broken(self) -> list[ResponseEvent]:
        """What was told is not a part of the answer, and nothing can take it back."""
        return [self.error({"code": BEGAN_AGAIN, "message": BEGAN_AGAIN_WORDS})]

    def _place(self) -> dict[str, Any]:
        return {"item_id": message_id(self._one), "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> ResponseEvent:
        number = self._next
        self._next += 1
        return {"type": kind, "sequence_number": number, **fields}

    def _unknown(self, events: Iterable[ResponseEvent]) -> list[ResponseEvent]:
        """Those that the reader does not have."""
        return [event for event in events if event["sequence_number"] > self._after]
