"""Pages as callers of Python ask for them."""

from uuid import UUID

from promptstack.repositories.pages import PageQuery
from promptstack.services.errors import InvalidInput
from promptstack.services.validation.bounds import checked_limit
from promptstack.services.validation.ids import read_id


def asked_page(
    what: str,
    *,
    limit: int,
    after: UUID | str | None = None,
    before: UUID | str | None = None,
) -> PageQuery:
    """The page of a list of `what`, such as "job", after or before an id. Raises `InvalidInput`."""
    if after is not None and before is not None:
        raise InvalidInput("A page is after another one or before it; give one of the two.")
    return PageQuery(
        checked_limit(limit),
        after=None if after is None else read_id(after, what),
        before=None if before is None else read_id(before, what),
    )
