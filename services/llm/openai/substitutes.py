"""Fields of OpenAI's requests that compatible servers know by another name, or not at all."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

READ = 1_000
"""Characters of a refusal that are read."""


class Substitute(NamedTuple):
    """What to send in place of a field."""

    fact: str
    """The field of `ModelFacts` that says so."""
    value: str
    field: str | None
    """The field that takes the value; None where the field is only left out."""


SUBSTITUTES: Mapping[str, Substitute] = {
    "max_completion_tokens": Substitute("max_tokens_parameter", "max_tokens", "max_tokens"),
    "max_tokens": Substitute(
        "max_tokens_parameter", "max_completion_tokens", "max_completion_tokens"
    ),
    "encoding_format": Substitute("encoding_format", "float", None),
    "stream_options": Substitute("stream_options", "none", None),
}
_NOT_TAKEN = re.compile(
    r"support|unknown|unrecogni|unexpected|extra|permitted|allowed|forbidden|additional"
    r"|invalid|should be|must be|no such|does not"
)
_OF_VALUE = (
    r"\b{field}\b[^.]{{0,40}}?(?:too (?:large|big|high|small|low)|at (?:most|least)"
    r"|(?:less|more|greater|smaller) than|exceed|above|below|between|positive|maximum|minimum)"
)
"""Words of a refusal that is about the value. The server then knows the field, and might ignore the
substitute silently."""


def as_taken(body: Mapping[str, Any], facts: Mapping[str, str | None]) -> dict[str, Any]:
    """The body with the substitutes that the `facts` about its model ask for."""
    changed = dict(body)
    for field, other in SUBSTITUTES.items():
        if field in changed and facts.get(other.fact) == other.value:
            changed = without(changed, field)
    return changed


def refused_field(body: Mapping[str, Any], said: str) -> str | None:
    """The field that a refusal names and that has a substitute."""
    said = said[:READ].lower()
    if not _NOT_TAKEN.search(said):
        return None
    named = [field for field in SUBSTITUTES if re.search(rf"\b{field}\b", said)]
    if any(re.search(_OF_VALUE.format(field=field), said) for field in named):
        return None
    return next((field for field in named if field in body), None)


def without(body: Mapping[str, Any], field: str) -> dict[str, Any]:
    """The body with the field's substitute."""
    changed = dict(body)
    value, other = changed.pop(field), SUBSTITUTES[field].field
    if other is not None:
        changed[other] = value
    return changed
