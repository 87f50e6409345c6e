"""Reads the JSON of providers' answers.

The text or the vectors were paid for, so they are kept whatever else is wrong. A malformed field
counts as unknown and is noted. Only an answer without a text or vectors, or an ambiguous one, is
refused.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import JsonValue
from pydantic_core import from_json

from promptstack.config.control_characters import CONTROLS
from promptstack.services.llm.answers import Usage
from promptstack.services.text import REPLACEMENT, make_storable

MOST_TOKENS = 2**31 - 1
"""The largest number that the ledger's column holds, far above any real call."""
LONGEST_WORD = 200
MOST_NOTES = 10
DEEPEST = 150
"""Levels of nesting that every JSON parser accepts."""


WRONG_FORM = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)
"""The errors that reading raises for a malformed answer."""
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
"""A string or bracket. An unclosed string matches to the end, so the search stays linear."""
_TEXT_PARTS = frozenset({"text", "output_text"})


@dataclass(frozen=True)
class Said:
    """What an answer says, the same for all wires."""

    text: str | None
    """None where there is no text, which differs from an empty one."""
    usage: Usage
    model: str | None = None
    finish_reason: str | None = None
    tool_calls: tuple[dict[str, JsonValue], ...] = ()
    value: Any = None
    """What stands in the text's place: some servers return the requested JSON as an object."""
    refusal: str | None = None
    request_id: str | None = None


class Notes:
    """Notes on malformed fields: their names, never their content."""

    def __init__(self) -> None:
        self._notes: dict[str, None] = {}

    def add(self, note: str) -> None:
        """Add a note, unless it is there already."""
        if len(self._notes) < MOST_NOTES:
            self._notes[note] = None

    def __str__(self) -> str:
        return "; ".join(self._notes)


@dataclass(frozen=True)
class Part:
    """A JSON object in an answer. Reading a field of it never raises."""

    fields: Mapping[str, Any] | None
    """None where the answer has something else in its place."""
    notes: Notes
    name: str = ""

    def get(self, name: str) -> Any:
        """The field's value, or None."""
        return None if self.fields is None else self.fields.get(name)

    def part(self, name: str, *, is_expected: bool = False) -> "Part":
        """The object in this field; an empty one where there is none."""
        found = self.get(name)
        if found is None and not is_expected and self.fields is not None:
            found = {}
        if not isinstance(found, dict):
            self.odd(name, found)
            found = None
        return Part(found, self.notes, self._path(name))

    def parts(self, name: str) -> "list[Part]":
        """The objects in a list. A single object in place of the list counts as a list of one."""
        found = self.get(name)
        if isinstance(found, dict):
            self.odd(name, found)
            found = [found]
        elif found is not None and not isinstance(found, list):
            self.odd(name, found)
        objects = []
        for one in found if isinstance(found, list) else []:
            if isinstance(one, dict):
                objects.append(Part(one, self.notes, self._path(name)))
            else:
                self.notes.add(f"{self._path(name)} holds {kind_of(one)}")
        return objects

    def is_a(self, kind: str, field: str) -> bool:
        """Whether its type is `kind`. Without a type, having `field` decides."""
        said = self.get("type")
        if isinstance(said, str):
            return said == kind
        self.odd("type", said)
        return self.get(field) is not None

    def word(self, name: str) -> str | None:
        """A short text for tables and logs, such as a name or a reason."""
        found = self.get(name)
        if found is None or found == "":
            return None
        is_text = isinstance(found, str)
        if not is_text or len(found) > LONGEST_WORD or CONTROLS.search(found):
            self.odd(name, found)
            return None
        return make_storable(found)

    def count(self, name: str, missing: int | None = None) -> int | None:
        """A number of tokens or a position; `missing` where the field is absent."""
        found = self.get(name)
        if found is None:
            if missing is None:
                self.odd(name, found)
            return None if self.fields is None else missing
        is_whole = isinstance(found, int) or (isinstance(found, float) and found.is_integer())
        if isinstance(found, str) and re.fullmatch(r"[0-9]{1,10}", found):
            is_whole, found = True, int(found)
        if isinstance(found, bool) or not is_whole:
            self.odd(name, found)
        elif not 0 <= found <= MOST_TOKENS:
            self.notes.add(f"{self._path(name)} is {'negative' if found < 0 else 'too large'}")
        else:
            return int(found)
        return None

    def text(self, name: str) -> str | None:
        """A text, or the joined texts of its parts; None where the field holds no text."""
        found = self.get(name)
        if self.fields is None or found is None or isinstance(found, str):
            return None if self.fields is None else found or ""
        if not isinstance(found, list):
            self.odd(name, found)
        parts = [found] if isinstance(found, dict) else found
        texts = list(self._texts(name, parts)) if isinstance(parts, list) else []
        return "".join(texts) if texts or found == [] else None

    def odd(self, name: str, found: object) -> None:
        """Note that a field holds something unexpected."""
        if self.fields is not None:
            self.notes.add(f"{self._path(name)} is {kind_of(found)}")

    def _texts(self, name: str, parts: list[Any]) -> Iterator[str]:
        for part in parts:
            fields = {"text": part} if isinstance(part, str) else part
            if not isinstance(fields, dict):
                self.notes.add(f"{self._path(name)} holds {kind_of(part)}")
                continue
            kind, text = fields.get("type"), fields.get("text")
            if isinstance(kind, str) and kind not in _TEXT_PARTS:
                yield ""  # a thought, a call or the like
            elif isinstance(text, str):
                yield text
            else:
                self.notes.add(f"{self._path(name)}.text is {kind_of(text)}")

    def _path(self, name: str) -> str:
        return f"{self.name}.{name}" if self.name else name


def parse(content: bytes) -> Part:
    """Parse an answer. Raises one of `WRONG_FORM` where it is no JSON object."""
    notes = Notes()
    try:
        value = from_json(content)
    except ValueError:
        # It may have half a surrogate pair, a byte order mark or another encoding.
        encoding = json.detect_encoding(content)
        text = content.decode(encoding, errors="replace").lstrip("\ufeff")
        if REPLACEMENT in text and REPLACEMENT.encode(encoding) not in content:
            notes.add("some of its bytes are no text")
        value = json.loads(_flat(text, notes), strict=False, parse_int=_integer)
    if not isinstance(value, dict):
        raise TypeError(f"the answer is {kind_of(value)}")
    return Part(value, notes)


def credible(usage: Usage, text: str, notes: Notes) -> Usage:
    """Replace impossible counts by None: texts have tokens, and what was cached was read."""
    asked, made = usage.input_tokens, usage.output_tokens
    if asked == 0:
        notes.add("no input tokens were counted")
    if made == 0 and text:
        notes.add("no output tokens were counted")
    cached = usage.cached_tokens
    if asked and (cached or 0) + (usage.cache_write_tokens or 0) > asked:
        notes.add("more tokens were cached than read")
        cached = None
    made = None if made == 0 and text else made
    return replace(usage, input_tokens=asked or None, output_tokens=made, cached_tokens=cached)


def _flat(text: str, notes: Notes) -> str:
    """Turn what is nested deeper than `DEEPEST` into strings."""
    made, depth, done = [], 0, 0
    for token in _TOKEN.finditer(text):
        if token.group() in "[{":
            depth += 1
            if depth == DEEPEST:
                made.append(text[done : token.start()])
                done = token.start()
        elif token.group() in "]}":
            if depth == DEEPEST:
                made.append(json.dumps(text[done : token.end()]))
                done = token.end()
                notes.add(f"what is nested over {DEEPEST} levels deep was left as text")
            depth -= 1
    return "".join([*made, text[done:]])


def _integer(digits: str) -> int | float:
    try:
        return int(digits)
    except ValueError:
        return float(digits)


def kind_of(value: object) -> str:
    """The kind of a value, for notes and errors, which never quote it."""
    match value:
        case None:
            return "missing"
        case bool():
            return "true or false"
        case str():
            return "text"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case _:
            return "an object"
