"""What a caller may ask for: one type for each kind of number, time and text, at every door.

The HTTP API declares its bodies and queries with them. The services check what comes from Python
and from the command line.
"""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_DOWN, Decimal
from typing import Annotated

from pydantic import (
    AfterValidator,
    BeforeValidator,
    FailFast,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)

from promptstack.config.settings import MAX_CHUNK_TOKENS, MIN_CHUNK_TOKENS
from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_name, check_storable, check_storable_json

MAX_COST_USD = 99_999_999
"""As much as the ledger's columns hold."""
SMALLEST_COST = Decimal("1e-10")
"""As little as they hold."""
NUMBER = re.compile(r"\s*[+-]?[\d._]+(e[+-]?\d+)?\s*", re.IGNORECASE)
LARGEST_OFFSET = timedelta(hours=14)
MAX_EXPLANATION = 400


def _amount(limit: Decimal) -> Decimal:
    """Refuse NaN too: a comparison with it would hold no limit at all."""
    if not limit.is_finite() or not 0 <= limit <= MAX_COST_USD:
        raise ValueError(
            f"a limit of the cost must be an amount of dollars from 0 to {MAX_COST_USD:,}"
        )
    if 0 < limit < SMALLEST_COST:
        raise ValueError(f"a limit of the cost is $0, or at least ${SMALLEST_COST:f}")
    return limit.quantize(SMALLEST_COST, ROUND_DOWN)


def _in_ascii(amount: object) -> object:
    """Refuse digits of other alphabets, which Decimal reads and people may not."""
    if isinstance(amount, str) and not amount.isascii():
        raise ValueError("must be written in the digits 0 to 9")
    return amount


def _written(given: object) -> object:
    """Refuse a number: whether it is seconds or milliseconds would be guessed by its size."""
    if isinstance(given, int | float) or (isinstance(given, str) and NUMBER.fullmatch(given)):
        raise ValueError("must be a time such as 2026-11-30T08:00:00Z, and no number")
    return given


def _in_utc(time: datetime) -> datetime:
    if abs(time.utcoffset() or timedelta(0)) > LARGEST_OFFSET:
        raise ValueError("must have an offset from UTC of at most 14 hours")
    try:
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("must be in the years 1 to 9999, in UTC") from error


def _storable(text: str, info: ValidationInfo) -> str:
    return check_storable(text, f"{info.field_name or 'text'}")


def _storable_json(value: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
    check_storable_json(value, f"{info.field_name or 'JSON'}")
    return value


def _name(text: str, info: ValidationInfo) -> str:
    return check_name(text, f"{info.field_name or 'name'}")


Text = Annotated[
    str, AfterValidator(_storable), Field(json_schema_extra={"pattern": r"^[^\u0000]*$"})
]
"""A string that PostgreSQL can hold: no NUL, no lone surrogate."""
Line = Annotated[
    str,
    AfterValidator(_name),
    Field(json_schema_extra={"pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$"}),
]
"""Text of one line without control characters."""
Name = Annotated[Line, Field(max_length=200)]
"""What something is called."""
MAX_TAGS = 16
TagName = Annotated[Line, Field(min_length=1, max_length=64)]
"""A word of the caller's, to find a job or a run by."""
Tags = Annotated[
    tuple[TagName, ...],
    FailFast(),
    Field(max_length=MAX_TAGS),
    AfterValidator(lambda tags: tuple(dict.fromkeys(tags))),
]
"""Tags of one job or run: each counts once."""
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(_storable_json)]
"""An object that jsonb can hold."""

# Strict: `true` and "5" are no numbers, at no door.
Retries = Annotated[int, Field(strict=True, ge=0, le=100)]
"""Failed attempts after which there is no other one."""
Lifetime = Annotated[float, Field(strict=True, gt=0, le=366 * 86_400, allow_inf_nan=False)]
"""Seconds after which a job or a run ends as expired if it is not done: a year at most."""
ChunkTokens = Annotated[int, Field(strict=True, ge=MIN_CHUNK_TOKENS, le=MAX_CHUNK_TOKENS)]
"""The longest chunk of a document."""
InFlight = Annotated[int, Field(strict=True, ge=1, le=1_000)]
"""Calls at once in each worker."""
Dollars = Annotated[
    Decimal,
    Field(allow_inf_nan=True),
    BeforeValidator(_in_ascii),
    AfterValidator(_amount),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "minimum": 0, "maximum": MAX_COST_USD},
                {"type": "string", "pattern": r"^[0-9]{1,8}(\.[0-9]+)?$"},
            ]
        }
    ),
]
"""A limit of the cost."""
Temperature = Annotated[float, Field(strict=True, ge=0, le=2)]
MaxTokens = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Seed = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Time = Annotated[datetime, BeforeValidator(_written), AfterValidator(_in_utc)]
"""A time in UTC. One without a zone is taken as UTC. PostgreSQL takes no offset larger than any on
earth."""


class _Refused:
    """Raises `InvalidInput` with one sentence for each `ValidationError` in its block."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ValidationError):
            raise InvalidInput(_explain(error), pointer=_field(error)) from None


_REFUSED = _Refused()


def refused_in_words() -> _Refused:
    """Raise `InvalidInput` with one sentence for each `ValidationError` in this block."""
    return _REFUSED  # it keeps nothing, and a generator made for each block takes longer than it


def checked_time(time: datetime | None, name: str) -> datetime | None:
    """Return a `Time`. Raises `InvalidInput`, which has its `name`."""
    try:
        return None if time is None else _in_utc(time)
    except ValueError as error:
        raise InvalidInput(f"{name} {error}.") from error


def checked_limit(limit: int) -> int:
    """Return how many rows are asked for. Raises `InvalidInput`."""
    if type(limit) is not int or not 0 <= limit < 2**31:
        raise InvalidInput(f"The limit must be a whole number from 0 to {2**31 - 1:,}.")
    return limit


def pointer(parts: Sequence[int | str]) -> str:
    """The place of a value in a document: a JSON pointer (RFC 6901)."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in parts)


def _field(error: ValidationError) -> str:
    """The field at fault; empty where there are several."""
    found = {
        pointer(problem["loc"])
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    }
    return found.pop() if len(found) == 1 else ""


def _explain(error: ValidationError) -> str:
    """Say what is wrong without quoting the request."""
    problems = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{where}: {message}" if where else message)
    return f"The request is not valid: {'; '.join(problems)[:MAX_EXPLANATION]}."
