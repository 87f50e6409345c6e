"""What a budget allows and has counted, and by what its sums change."""

from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from promptstack.repositories.budget_models import DEPLOYMENT

ZERO = Decimal(0)


class Window(StrEnum):
    """How long a cap counts, by the calendar in UTC."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


class Owner(NamedTuple):
    """Whose call it is: its budgets are those of both, and the deployment's."""

    user_id: UUID | None
    api_key_id: UUID | None

    @property
    def subjects(self) -> set[UUID]:
        """The budgets that may count its calls."""
        return {DEPLOYMENT, *(id_ for id_ in self if id_ is not None)}

    @property
    def subject(self) -> UUID:
        """The narrowest of them."""
        return self.api_key_id or self.user_id or DEPLOYMENT


class Settled(NamedTuple):
    """What an attempt came to, against what was reserved for it."""

    owner: Owner
    day: date
    """On which it began."""
    change_usd: Decimal


@dataclass
class Spending:
    """One budget: what it allows, and what it has counted."""

    subject: UUID
    user_id: UUID | None
    api_key_id: UUID | None
    caps: dict[Window, Decimal]
    day: date
    spent: dict[Window, Decimal]
    name: str = ""
    """What the user or key is called; empty where nobody asked."""

    def turn_to(self, today: date) -> None:
        """Begin a new day, if it is one, and a new month."""
        if today > self.day:
            self.spent[Window.DAY] = ZERO
            if (today.year, today.month) != (self.day.year, self.day.month):
                self.spent[Window.MONTH] = ZERO
            self.day = today

    def add(self, usd: Decimal, day: date) -> None:
        """Count money of a call that began on `day`."""
        self.spent[Window.TOTAL] += usd
        if (day.year, day.month) == (self.day.year, self.day.month):
            self.spent[Window.MONTH] += usd
        if day == self.day:
            self.spent[Window.DAY] += usd
