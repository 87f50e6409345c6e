"""Stores jobs once more where a connection broke: nobody knows then whether they are there."""

from collections.abc import Callable
from typing import TypeVar

from promptstack.repositories.errors import LedgerCrowded, LedgerUnavailable

Result = TypeVar("Result")


def stored_once(store: Callable[[], Result], again: Callable[[], Result] | None = None) -> Result:
    """Store jobs, by `again` after a broken connection.

    They keep their ids, and of each id there can be only one.
    """
    try:
        return store()
    except LedgerCrowded:
        raise  # nothing was sent
    except LedgerUnavailable:
        return (again or store)()
