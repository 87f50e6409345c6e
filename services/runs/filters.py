"""Which runs a list shows."""

from datetime import datetime
from typing import TypedDict
from uuid import UUID

from promptstack.repositories.run_models import RunKind, RunState
from promptstack.repositories.runs.runs import RunFilter
from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_storable
from promptstack.services.validation.bounds import checked_time
from promptstack.services.validation.ids import read_owner


class RunFilters(TypedDict, total=False):
    """The fields of a `RunFilter` that callers say, as keywords."""

    state: RunState | None
    kind: RunKind | None
    tag: str | None
    since: datetime | None
    until: datetime | None


def checked_filter(owner: UUID | None, wanted: RunFilters) -> RunFilter:
    """The filter, with its times in UTC. Raises `InvalidInput`."""
    since = checked_time(wanted.get("since"), "since")
    until = checked_time(wanted.get("until"), "until")
    if since is not None and until is not None and since >= until:
        raise InvalidInput("`since` must be before `until`.")
    check_storable(wanted.get("tag") or "", "The filter `tag`")
    return RunFilter(
        user_id=read_owner(owner),
        state=wanted.get("state"),
        kind=wanted.get("kind"),
        tag=wanted.get("tag"),
        since=since,
        until=until,
    )
