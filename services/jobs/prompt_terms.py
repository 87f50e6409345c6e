"""Generations that differ in their prompt alone: what else they say is checked once.

A list of ten thousand prompts is mostly such. Their JSON is that of the first one, with another
prompt in its place.
"""

import hashlib
import json
from collections.abc import Hashable, Mapping
from functools import cached_property
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any

from pydantic import ValidationError

from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.new_job import CHECKED_KEY, NewJob, canonical_json, written_json
from promptstack.services.text import is_storable

OWN = frozenset({"prompt", "idempotency_key"})
"""What each generation may say differently."""


def terms_of(entry: Mapping[str, Any]) -> Hashable | None:
    """What a generation says beside its prompt; None where that can't be compared quickly."""
    if entry.get("messages") or type(entry.get("prompt")) is not str:
        return None
    # With types: 1 and True are equal, and only one of them may be right.
    terms = tuple([(name, type(said), said) for name, said in entry.items() if name not in OWN])
    try:
        hash(terms)
    except TypeError:
        return None
    return terms


class PromptTerms:
    """A checked generation of a prompt, from which others are made."""

    def __init__(self, checked: NewJob) -> None:
        self._checked = checked

    def with_prompt(self, entry: Mapping[str, Any], place: str, most_bytes: int) -> NewJob | None:
        """The generation of an entry with these terms; None for one that must be looked at."""
        prompt, options = entry["prompt"], self._checked.options
        if not is_storable(prompt) or not prompt.strip():
            return None
        (before, after), (canonical_before, canonical_after) = self._parts
        written = f"{before}{encode_basestring(prompt)}{after}"
        if 4 * len(written) > most_bytes:  # no character has more than four bytes
            return None
        key = entry.get("idempotency_key")
        if key != options.idempotency_key:
            try:
                given = {"idempotency_key": CHECKED_KEY.validate_python(key)}
            except (ValidationError, InvalidInput):
                return None
            options = options.model_copy(update=given)
        canonical = f"{canonical_before}{encode_basestring_ascii(prompt)}{canonical_after}"
        first = self._checked
        return NewJob(
            first.kind,
            first.provider,
            first.model,
            {**first.body, "prompt": prompt},
            written,
            options,
            place=place,
            request_hash=hashlib.sha256(canonical.encode()).hexdigest(),
        )

    @cached_property
    def _parts(self) -> tuple[tuple[str, str], tuple[str, str]]:
        """The JSON before and after the prompt, as it is stored and as it is hashed."""
        first = self._checked
        mark = first.id.hex  # nowhere else in it
        body = {**first.body, "prompt": mark}
        texts = written_json(body), canonical_json(first.kind, first.provider, first.model, body)
        (before, _, after), (canonical_before, _, canonical_after) = (
            text.partition(json.dumps(mark)) for text in texts
        )
        return (before, after), (canonical_before, canonical_after)
