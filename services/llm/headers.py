"""What the headers of a provider's answer tell: when to come again, limits, the call's id."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from promptstack.services.llm.answers import Dimension, LimitReport, LimitState

MOST_CREDIBLE_WAIT = 86_400.0
"""What is longer is a point in time, or a mistake."""
LIMITS: Mapping[Dimension, tuple[tuple[str, str], ...]] = {
    "requests": (
        ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"),
        ("anthropic-ratelimit-requests-limit", "anthropic-ratelimit-requests-remaining"),
    ),
    # Anthropic's `tokens` is whichever of its two limits binds now; they are told apart below.
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
"""Beyond any limit; more digits are nonsense."""


def limit_report(headers: Mapping[str, str]) -> LimitReport:
    """Return the limits that the headers tell of; what is unreadable counts as not said."""
    found: dict[Dimension, LimitState] = {}
    for dimension, pairs in LIMITS.items():
        for limit_name, remaining_name in pairs:
            limit = _count(headers.get(limit_name, ""))
            remaining = _count(headers.get(remaining_name, ""))
            if limit and remaining is not None:
                found[dimension] = LimitState(limit, remaining)
    return LimitReport(found)


def request_id(headers: Mapping[str, str]) -> str | None:
    """The provider's id for a call, unless it has a form that could carry anything else."""
    for name in REQUEST_IDS:
        found = re.fullmatch(r"[\w.:-]{1,100}", headers.get(name, ""))
        if found:
            return found.group()
    return None


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that a response asks us to wait.

    `retry-after-ms` goes before `retry-after`, which holds seconds or an HTTP date. What is
    not credible counts as not said.
    """
    plain = headers.get("retry-after", "")
    milliseconds = _number(headers.get("retry-after-ms", ""))
    for wait in (milliseconds / 1_000, _number(plain), _seconds_until(plain, now)):
        if (credible := credible_wait(wait)) is not None:
            return credible
    return None


def credible_wait(seconds: float | None) -> float | None:
    """The same number where somebody may mean it as a wait, else None.

    Some name a point in time in seconds since 1970, `inf`, or less than nothing.
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
