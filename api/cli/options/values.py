"""Values that people type: NAME=VALUE, times, time spans, amounts of money."""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from json import JSONDecodeError
from typing import Any

from promptstack.api.cli.terminal import SECONDS
from promptstack.services.errors import InvalidInput
from promptstack.services.validation.json_text import load_exactly

SHOWN = 80
LONGEST_AHEAD = 100 * 366 * 86_400.0


def named_value(given: str, option: str) -> tuple[str, Any]:
    """Read NAME=VALUE; the value is JSON, or else text. Raises `InvalidInput`."""
    name, equals, value = given.partition("=")
    what = f"{option} {name[:SHOWN]}"
    if not name or not equals:
        raise InvalidInput(f"{option} {given[:SHOWN]!a} is not of the form NAME=VALUE.")
    try:
        return name, load_exactly(value, what)
    except JSONDecodeError:
        return name, value


def point_in_time(given: str) -> datetime:
    """Read a date, a time, or a span back from now. Raises `InvalidInput`."""
    back = re.fullmatch(r"(\d{1,4})([hdw])", given)
    if back:
        return datetime.now(UTC) - timedelta(seconds=int(back[1]) * SECONDS[back[2]])
    try:
        then = datetime.fromisoformat(given)
    except ValueError as error:
        raise InvalidInput(
            f"{given[:40]!r} is no time; write 2026-11-23, 2026-11-23T12:00, 12h, 7d or 4w."
        ) from error
    return then if then.tzinfo else then.replace(tzinfo=UTC)


def seconds_of(given: str | None) -> float | None:
    """Read a time span: seconds, or 30s, 10m, 2h, 7d, 4w. Raises `InvalidInput`."""
    if given is None:
        return None
    number, unit = (given[:-1], given[-1]) if given[-1:] in SECONDS else (given, "s")
    try:
        return float(number) * SECONDS[unit]
    except ValueError as error:
        raise InvalidInput(
            f"{given[:40]!r} is no time span; write seconds, or 30s, 10m, 2h, 7d, 4w."
        ) from error


def time_ahead(given: str | None) -> datetime | None:
    """Read a time span from now on; a century at most. Raises `InvalidInput`."""
    seconds = seconds_of(given)
    if seconds is None:
        return None
    if not 0 < seconds <= LONGEST_AHEAD:
        raise InvalidInput("The time span must be more than 0 and at most 100 years.")
    return datetime.now(UTC) + timedelta(seconds=seconds)


def dollars_of(given: str | None) -> Decimal | None:
    """Read an amount of dollars. Raises `InvalidInput`."""
    if given is None:
        return None
    try:
        amount = Decimal(given.removeprefix("$"))
    except InvalidOperation:
        raise InvalidInput(f"{given[:40]!r} is no amount of dollars.") from None
    if not amount.is_finite():
        raise InvalidInput("The amount must be a number.")
    return amount
