"""Budgets as people set them and look at them; docs/access.md says what they mean."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from promptstack.config.models_file import Money
from promptstack.repositories.budgets.spending import Owner, Spending, Window
from promptstack.repositories.errors import LedgerConflict
from promptstack.repositories.pages import FIRST_PAGE, Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.caller import Caller
from promptstack.services.access.user_rules import check_may_change, check_may_change_keys
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.budgets.admission import opens_at
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.validation.bounds import Dollars, refused_in_words

WAIT_SECONDS = 30.0
"""How long the first cap of something waits for calls that are being recorded as it is set."""
POLL_SECONDS = 0.05


class Scope(StrEnum):
    """Whose budget it is."""

    KEY = "key"
    USER = "user"
    DEPLOYMENT = "deployment"


class Caps(BaseModel):
    """Caps to set, in US dollars. None takes a cap away; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra={"minProperties": 1})

    day: Dollars | None = None
    month: Dollars | None = None
    total: Dollars | None = None

    def given(self) -> dict[Window, Decimal | None]:
        """What is to change."""
        return {
            window: getattr(self, window) for window in Window if window in self.model_fields_set
        }


class CapView(BaseModel):
    """One cap, and how much of it is used."""

    model_config = ConfigDict(frozen=True)

    window: Window
    """A day or a month by the calendar in UTC, or all time."""
    cap_usd: Money | None
    """None where there is no cap."""
    used_usd: Money
    """What was paid, and the most that calls under way can cost."""
    opens_at: datetime | None
    """When it counts from zero again; None for all time."""


class BudgetView(BaseModel):
    """What a key, a user or the deployment may spend, and has spent."""

    model_config = ConfigDict(frozen=True)

    scope: Scope
    id: UUID | None
    """Of the key or user."""
    name: str
    """The key's name and how it begins, or the user's e-mail."""
    caps: Sequence[CapView]


@dataclass(frozen=True)
class Subject:
    """Whose budget is meant."""

    scope: Scope
    id: UUID | None = None

    @property
    def owner(self) -> Owner:
        """The same, as the ledger knows it."""
        is_key, is_user = self.scope is Scope.KEY, self.scope is Scope.USER
        return Owner(self.id if is_user else None, self.id if is_key else None)

    @property
    def row(self) -> UUID:
        """The key of its row."""
        return self.owner.subject


OF_DEPLOYMENT = Subject(Scope.DEPLOYMENT)


class BudgetService:
    """Sets spend caps, and shows how much of them is used."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def set(
        self,
        subject: Subject,
        caps: Mapping[str, Decimal | float | str | None] | Caps,
        *,
        owner: UUID | None = None,
        by: Caller | None = None,
    ) -> BudgetView | None:
        """Set caps of a key, a user or the deployment; the budget, None where no cap is left.

        With `owner`, a key must be this user's. `by` is who asks for it; None: the command line.

        They hold for every call that leaves from now on. The first cap of a subject counts what it
        has spent before, as far as the ledger still has its calls, and calls under way at what they
        are expected to cost. Administrators set no caps of administrators, not even their own, but
        those of their own keys. Raises `InvalidInput`, `NotFound` and `NotPermitted`.
        """
        with refused_in_words():
            checked = caps if isinstance(caps, Caps) else Caps.model_validate(dict(caps))
        given = checked.given()
        if not given:
            raise InvalidInput("Name at least one cap: of a day, of a month, or in total.")
        with self._ledger.transaction() as unit:
            _check_theirs(unit, subject, owner, by)
        is_counted = False
        while not self._put(subject, given, by, is_counted=is_counted):
            self._begin_counting(subject.owner)
            is_counted = True
        return self.get(subject)

    def _put(
        self,
        subject: Subject,
        given: Mapping[Window, Decimal | None],
        by: Caller | None,
        *,
        is_counted: bool,
    ) -> bool:
        """Store caps; False where the budget must count first."""
        takes_away = all(cap is None for cap in given.values())
        with self._ledger.transaction() as unit:
            is_there = unit.budgets.put(subject.owner, given, is_counted=is_counted)
            if is_there or takes_away:
                _record(unit, subject, given, by)
        return is_there or takes_away

    def get(self, subject: Subject) -> BudgetView | None:
        """The budget of a subject; None where it has none."""
        with self._ledger.transaction() as unit:
            found = unit.budgets.get_all(subjects=[subject.row])
        return _view(found[0]) if found and found[0].caps else None

    def get_all(self, owner: UUID | None = None) -> list[BudgetView]:
        """All budgets, the deployment's first; or those of a user and their keys."""
        with self._ledger.transaction() as unit:
            return [_view(one) for one in unit.budgets.get_all(user_id=owner)]

    def get_page(
        self, owner: UUID | None = None, asked: PageQuery = FIRST_PAGE
    ) -> Page[BudgetView]:
        """A page of them."""
        with self._ledger.transaction() as unit:
            return unit.budgets.page_of(owner, asked).of(_view)

    def _begin_counting(self, owner: Owner) -> None:
        """Have calls counted from now on, and count those from before.

        Each step is committed before the next: a call is counted either by itself, or as one from
        before. If this process dies in between, there is no cap, and it can be set again.
        """
        with self._ledger.transaction() as unit:
            unit.budget_counting.begin_counting(owner)
        self._wait_for_calls()
        with self._ledger.transaction() as unit:
            unit.budget_counting.reserve_under_way(owner)
            with unit.budgets.locked(owner.subjects):
                pass  # it is at today now
        is_counted = False
        while not is_counted:
            with self._ledger.transaction() as unit:
                is_counted = unit.budget_counting.count_anew(owner)

    def _wait_for_calls(self) -> None:
        """Wait until every transaction has ended that may record a call without counting it."""
        until = time.monotonic() + WAIT_SECONDS
        with self._ledger.transaction() as unit:
            left = unit.budget_counting.writers()
        while left:
            if time.monotonic() > until:
                raise LedgerConflict(
                    "The cap is not set: a transaction that records calls has been open for "
                    f"{WAIT_SECONDS:g} s. Set it again in a moment."
                )
            time.sleep(POLL_SECONDS)
            with self._ledger.transaction() as unit:
                left &= unit.budget_counting.writers()


def _check_theirs(
    unit: UnitOfWork, subject: Subject, owner: UUID | None, by: Caller | None
) -> None:
    if subject.id is None:
        return
    user_id: UUID | None = subject.id
    if subject.scope is Scope.KEY:
        key = unit.api_keys.get(subject.id)
        user_id = key.user_id if key is not None and owner in {None, key.user_id} else None
    user = user_id and unit.users.get(user_id)
    if not user:
        raise NotFound(f"There is no {subject.scope} {subject.id}.")
    if subject.scope is Scope.KEY:
        check_may_change_keys(by, user)
    else:
        check_may_change(by, user, {"budget"})


def _record(
    unit: UnitOfWork, subject: Subject, given: Mapping[Window, Decimal | None], by: Caller | None
) -> None:
    fields = {Window.DAY: "day_usd", Window.MONTH: "month_usd", Window.TOTAL: "forever_usd"}
    caps = {
        fields[window]: cap if cap is None else f"{cap.normalize():f}"
        for window, cap in given.items()
    }
    AuditLog.record(
        unit,
        actor=Actor.command_line() if by is None else Actor.of(by),
        action=Action.BUDGET_CHANGED,
        object=ObjectKind.BUDGET.of(subject.id or subject.scope),
        detail={"scope": str(subject.scope), **caps},
    )


def _view(spending: Spending) -> BudgetView:
    if spending.api_key_id is not None:
        scope = Scope.KEY
    else:
        scope = Scope.DEPLOYMENT if spending.user_id is None else Scope.USER
    return BudgetView(
        scope=scope,
        id=spending.api_key_id or spending.user_id,
        name=spending.name,
        caps=[
            CapView(
                window=window,
                cap_usd=spending.caps.get(window),
                used_usd=spending.spent[window],
                opens_at=_opens(spending, window),
            )
            for window in Window
        ],
    )


def _opens(spending: Spending, window: Window) -> datetime | None:
    day = opens_at(window, spending.day)
    return None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC)
