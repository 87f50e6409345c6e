"""Which jobs a list shows, or an operation changes."""

from dataclasses import replace
from datetime import datetime
from typing import TypedDict

from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.models import JobKind, JobState
from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_storable
from promptstack.services.validation.bounds import checked_time
from promptstack.services.validation.ids import read_owner


class JobFilters(TypedDict, total=False):
    """The fields of a `JobFilter` that callers say, as keywords."""

    state: JobState | None
    kind: JobKind | None
    provider: str | None
    model: str | None
    error: str | None
    tag: str | None
    since: datetime | None
    until: datetime | None


def checked_filter(wanted: JobFilter) -> JobFilter:
    """The same filter, with its times in UTC. Raises `InvalidInput`."""
    since, until = checked_time(wanted.since, "since"), checked_time(wanted.until, "until")
    if since is not None and until is not None and since >= until:
        raise InvalidInput("`since` must be before `until`.")
    for name in ("provider", "model", "error", "tag"):
        check_storable(getattr(wanted, name) or "", f"The filter `{name}`")
    return replace(wanted, since=since, until=until, user_id=read_owner(wanted.user_id))
