"""Reads the headers of answers: when to try again, rate limits, the id of the call."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from promptstack.services.llm.answers import Dimension, LimitReport, LimitState

MOST_CREDIBLE_WAIT = 86_400.0
"""A longer wait is a point in time, or a mistake."""
LIMITS: Mapping[Dimension, tuple[tuple[str, str], ...]] = {
    "requests": (
        ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"),
        ("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining"),
    ),
    # Anthropic's `tokens` is the lower of its two limits, which are read below.
    "tokens": (("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens"),),
    "input": (
        ("anthropic-ratelimit-input-tokens-limit", "anthropic-ratelimit-input-tokens-remaining"),
    ),
    "output": (
        ("anthropic-ratelimit-output-tokens-limit", "anthropic-ratelimit-output-tokens-remaining"),
    ),
}
REQUEST_IDS = ("x-request-id", "request-id")
MOST = 10**12
"""Higher than any real limit."""


def limit_report(headers: Mapping[str, str]) -> LimitReport:
    """Return the limits in the headers; unreadable ones count as missing."""
    found: dict[Dimension, LimitState] = {}
    given = dict(headers.items())  # each look into httpx2's headers goes through all of them
    for dimension, pairs in LIMITS.items():
        for limit_name, remaining_name in pairs:
            limit = _count(given.get(limit_name, ""))
            remaining = _count(given.get(remaining_name, ""))
            if limit and remaining is not None:
                found[dimension] = LimitState(limit, remaining)
    return LimitReport(found)


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's id of a call; None where its form could carry content."""
    for name in REQUEST_IDS:
        found = re.fullmatch(r"[\w.:-]{1,100}", headers.get(name, ""))
        if found:
            return found.group()
    return None


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that a response asks us to wait.

    `retry-after-ms` takes precedence over `retry-after`, which holds seconds or an HTTP date. An
    incredible value counts as missing.
    """
    plain = headers.get("retry-after", "")
    milliseconds = _number(headers.get("retry-after-ms", ""))
    for wait in (milliseconds / 1_000, _number(plain), _seconds_until(plain, now)):
        if (credible := credible_wait(wait)) is not None:
            return credible
    return None


def credible_wait(seconds: float | None) -> float | None:
    """Return the number if it can be a wait, else None.

    Some servers send a point in time in seconds since 1970, `inf`, or a negative number.
    """
    return seconds if seconds is not None and 0 <= seconds <= MOST_CREDIBLE_WAIT else None


def _count(text: str) -> int | None:
    number = _number(text)
    return int(number) if 0 <= number <= MOST else None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _seconds_until(http_date: str, now: datetime) -> float:
    try:
        then = parsedate_to_datetime(http_date)
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - now.timestamp()
    except (ValueError, OverflowError):
        return math.nan
