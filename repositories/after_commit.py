"""What a session does once its transaction is committed."""

from collections.abc import Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

_KEY = "promptstack.after_commit"


class AfterCommit:
    """The actions that wait for a session's commit."""

    def __init__(self, session: Session) -> None:
        self._waiting: list[tuple[SessionTransaction | None, Callable[[list[Any]], None], Any]] = []
        """Actions and items, each with the savepoint whose rollback takes it back."""
        self._is_committed = False
        event.listen(session, "after_commit", self._committed)
        event.listen(session, "after_soft_rollback", self._rolled_back)
        event.listen(session, "after_transaction_end", self._ended)

    @classmethod
    def of(cls, session: Session) -> "AfterCommit":
        """The one of this session."""
        if _KEY not in session.info:
            session.info[_KEY] = cls(session)
        found: AfterCommit = session.info[_KEY]
        return found

    def add(
        self,
        savepoint: SessionTransaction | None,
        action: Callable[[list[Any]], None],
        item: Any,
    ) -> None:
        """Run `action` with all its items after the commit, unless `savepoint` is rolled back."""
        self._waiting.append((savepoint, action, item))

    def _committed(self, session: Session) -> None:
        released = session.get_nested_transaction()
        if released is None:
            self._is_committed = True
            return
        # A savepoint was released: its actions belong to the transaction around it now.
        outer = released.parent if released.parent and released.parent.nested else None
        self._waiting = [
            (outer if savepoint is released else savepoint, action, item)
            for savepoint, action, item in self._waiting
        ]

    def _rolled_back(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.nested:
            self._waiting = [one for one in self._waiting if not _is_within(one[0], transaction)]

    def _ended(self, session: Session, transaction: SessionTransaction) -> None:
        """Act when the session has given its connection back.

        An action that needs a connection would else wait for one that its own thread holds.
        """
        if transaction.parent is not None:
            return
        waiting, is_committed = self._waiting, self._is_committed
        self._waiting, self._is_committed = [], False
        if is_committed:
            items: dict[Callable[[list[Any]], None], list[Any]] = {}
            for _, action, item in waiting:
                items.setdefault(action, []).append(item)
            for action, its_items in items.items():
                action(its_items)


def _is_within(savepoint: SessionTransaction | None, outer: SessionTransaction) -> bool:
    while savepoint is not None and savepoint is not outer:
        savepoint = savepoint.parent
    return savepoint is outer
