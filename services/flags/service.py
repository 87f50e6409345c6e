"""Feature flags as administrators use them: list, show, set and unset."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from promptstack.repositories.flag_models import FeatureFlag
from promptstack.repositories.session import Ledger
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditLog
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.flags.flags import MAX_FLAGS, FeatureFlags
from promptstack.services.flags.rules import Rule, stored_rules

MAX_BYTES = 1_000_000
"""Of a flag's rules, as JSON. Each process reads them every few seconds."""
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


class Source(StrEnum):
    """Where a flag's rules come from."""

    DATABASE = "database"
    SETTINGS = "settings"
    """FEATURE_FLAGS, or the product's own default."""


class FlagView(BaseModel):
    """A flag, and whom it is on for."""

    model_config = ConfigDict(frozen=True)

    name: str
    rules: Sequence[Rule]
    source: Source
    changed_at: datetime | None = None
    changed_by: str | None = None


class FlagService:
    """Changes flags. All processes know it within seconds, without a restart."""

    def __init__(
        self, ledger: Ledger, flags: FeatureFlags, configured: Mapping[str, Sequence[Rule]]
    ) -> None:
        self._ledger = ledger
        self._flags = flags
        self._configured = configured

    def get_all(self) -> list[FlagView]:
        """All flags by name: the database's, and the settings' that it does not have."""
        with self._ledger.transaction() as unit:
            found = {row.name: _view(row) for row in unit.flags.get_all(MAX_FLAGS)}
        configured = {name: self._as_configured(name) for name in self._configured}
        return [flag for _, flag in sorted((configured | found).items())]

    def get(self, name: str) -> FlagView:
        """One flag. Raises `NotFound` for one that nobody has heard of: it is off."""
        checked_name(name)
        with self._ledger.transaction() as unit:
            row = unit.flags.get(name)
            if row is not None:
                return _view(row)
        if name in self._configured:
            return self._as_configured(name)
        raise NotFound(f"There is no feature flag {name}, so it is off.")

    def set(self, name: str, rules: Sequence[Rule], *, by: Actor) -> FlagView:
        """Say whom a feature is on for. Raises `InvalidInput`."""
        checked_name(name)
        said = [rule.as_json() for rule in rules]
        if len(json.dumps(said, ensure_ascii=False).encode()) > MAX_BYTES:
            raise InvalidInput(f"The rules of a feature flag take more than {MAX_BYTES:,} bytes.")
        with self._ledger.transaction() as unit:
            before = unit.flags.get_for_change(name)
            if before is None and unit.flags.count() >= MAX_FLAGS:
                raise InvalidInput(f"There are {MAX_FLAGS} feature flags; remove one first.")
            had = [rule.as_json() for rule in self._configured.get(name, ())]
            unit.flags.put(name, said, changed_by=by.email or by.address)
            detail = {"before": had if before is None else before.rules, "after": said}
            _record(unit, Action.FLAG_CHANGED, name, by, detail)
        self._flags.forget()
        return self.get(name)

    def unset(self, name: str, *, by: Actor) -> None:
        """Remove a flag from the database: the settings hold again. Raises `NotFound`."""
        checked_name(name)
        with self._ledger.transaction() as unit:
            row = unit.flags.get_for_change(name)
            if row is None:
                raise NotFound(
                    f"The database has no feature flag {name}; what the settings say holds."
                )
            unit.flags.delete(name)
            _record(unit, Action.FLAG_DELETED, name, by, {"before": row.rules})
        self._flags.forget()

    def _as_configured(self, name: str) -> FlagView:
        return FlagView(name=name, rules=self._configured[name], source=Source.SETTINGS)


def checked_name(name: str) -> str:
    """Return a flag's name, or raise `InvalidInput`."""
    if NAME.fullmatch(name) is None:
        raise InvalidInput(
            "A feature flag's name has up to 64 small letters, digits and _, and begins with a "
            "letter."
        )
    return name


def _view(row: FeatureFlag) -> FlagView:
    return FlagView(
        name=row.name,
        rules=stored_rules(row.name, row.rules),
        source=Source.DATABASE,
        changed_at=row.changed_at,
        changed_by=row.changed_by,
    )


def _record(unit: Any, action: Action, name: str, by: Actor, detail: Mapping[str, Any]) -> None:
    AuditLog.record(unit, actor=by, action=action, object=ObjectKind.FLAG.of(name), detail=detail)
