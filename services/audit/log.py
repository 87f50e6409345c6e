"""The audit log: what is recorded with an action, and how it is read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.config.errors import PromptStackError
from promptstack.repositories.audit import AuditFilter
from promptstack.repositories.audit_models import ActorKind, AuditResult
from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.audit.actions import Action, AuditObject
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.detail import checked_detail
from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_storable, make_storable
from promptstack.services.validation.bounds import checked_time
from promptstack.services.validation.paging import asked_page

MAX_NAME = 254
"""Characters of an address, an e-mail, or the name of an object; the rest is cut off."""


class AuditView(BaseModel):
    """An entry of the audit log."""

    model_config = ConfigDict(from_attributes=True, frozen=True)

    id: UUID
    at: datetime
    actor_kind: ActorKind
    user_id: UUID | None
    email: str | None
    key_id: UUID | None
    action: str
    object_kind: str | None
    object_id: str | None
    address: str
    result: AuditResult
    detail: dict[str, Any]


class AuditLog:
    """Records what people do, and shows it to administrators.

    >>> with ledger.transaction() as unit:
    ...     unit.api_keys.revoke(key_id)
    ...     audit.record(
    ...         unit,
    ...         actor=Actor.of(caller),
    ...         action=Action.KEY_REVOKED,
    ...         object=ObjectKind.KEY.of(key_id),
    ...     )
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @staticmethod
    def record(
        unit: UnitOfWork,
        *,
        actor: Actor,
        action: Action,
        object: AuditObject | None = None,  # noqa: A002 - the log's own word
        result: AuditResult = AuditResult.OK,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an entry in the transaction of what was done: both are there, or neither."""
        unit.audit.create(
            actor_kind=actor.kind,
            user_id=actor.user_id,
            email=None if actor.email is None else _short(actor.email),
            key_id=actor.key_id,
            action=action,
            object_kind=object and object.kind,
            object_id=object and _short(object.id),
            address=_short(actor.address),
            result=result,
            detail=checked_detail(detail or {}),
        )

    def record_alone(
        self,
        *,
        actor: Actor,
        action: Action,
        object: AuditObject | None = None,  # noqa: A002 - as in `record`
        result: AuditResult = AuditResult.REFUSED,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Add an entry in a transaction of its own: for what was refused, whose own rolls back."""
        with self._ledger.transaction() as unit:
            self.record(
                unit, actor=actor, action=action, object=object, result=result, detail=detail
            )

    @contextmanager
    def refusals(
        self,
        *,
        actor: Actor,
        action: Action,
        object: AuditObject | None = None,  # noqa: A002 - as in `record`
    ) -> Iterator[None]:
        """Record as refused what one of our errors ends in this context; the error goes on.

        Put the transaction inside of it. An outage is no refusal, and is not recorded.
        """
        try:
            yield
        except PromptStackError as error:
            if not error.transient:
                detail = {"error_code": error.code}
                self.record_alone(actor=actor, action=action, object=object, detail=detail)
            raise

    def get_many(
        self,
        *,
        after: UUID | str | None = None,
        limit: int = 50,
        newest_first: bool = True,
        **wanted: Any,
    ) -> list[AuditView]:
        """Read entries, newest first. `after` is the last id of the page before.

        What is `wanted` are the fields of `AuditFilter`. Raises `InvalidInput`.
        """
        asked = asked_page("audit entry", limit=limit, after=after)
        return self.get_page(AuditFilter(**wanted), asked, newest_first=newest_first).rows

    def get_page(
        self, wanted: AuditFilter, asked: PageQuery, *, newest_first: bool = True
    ) -> Page[AuditView]:
        """Read a page of entries. Raises `InvalidInput`."""
        for name in ("actor", "action", "object_id"):
            check_storable(getattr(wanted, name) or "", name)
        since = checked_time(wanted.since, "since")
        until = checked_time(wanted.until, "until")
        if since is not None and until is not None and since >= until:
            raise InvalidInput("`since` must be before `until`.")
        wanted = replace(wanted, since=since, until=until)
        with self._ledger.transaction() as unit:
            found = unit.audit.find(wanted, asked, newest_first=newest_first)
            return found.of(AuditView.model_validate)


def _short(text: str) -> str:
    return make_storable(text)[:MAX_NAME]
