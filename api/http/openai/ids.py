"""Ids and times as OpenAI writes them: a prefix with 32 hexadecimal digits, and whole seconds."""

from datetime import datetime
from uuid import UUID

from promptstack.services.errors import NotFound


def wire_id(prefix: str, one: UUID) -> str:
    """Return an id as clients see it, such as `file-` with 32 digits."""
    return f"{prefix}{one.hex}"


def read_wire_id(prefix: str, given: str, what: str) -> UUID:
    """Return the id that a client has sent. Raises `NotFound`, where it can't be one of ours."""
    digits = given.removeprefix(prefix)
    if len(digits) == 32 and digits != given:
        try:
            found = UUID(hex=digits)
        except ValueError:
            pass
        else:
            if found.hex == digits:
                return found
    raise NotFound(f"There is no {what} with this id.")


def unix(time: datetime | None) -> int | None:
    """Return a time in seconds since 1970; None for none."""
    return None if time is None else int(time.timestamp())
