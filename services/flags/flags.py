"""Whether a feature is on for a user, by the rules that all processes share within seconds."""

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from promptstack.config.errors import PromptStackError
from promptstack.repositories.session import Ledger
from promptstack.services.errors import FeatureOff
from promptstack.services.flags.rules import FlagUser, Rule, on_for, stored_rules

logger = logging.getLogger(__name__)

REREAD_SECONDS = 2.0
"""How old the flags may be that a process knows. A change is seen everywhere within this time and
a statement, well under 5 s."""
STATEMENT_SECONDS = 1.0
MAX_FLAGS = 1_000
"""In the database."""


class FeatureFlags:
    """The flags as this process knows them: the database's, else the settings'.

    They are read again on use, and by one thread: others go on with what is known. While the ledger
    is away, what was known last still holds.
    """

    def __init__(
        self,
        ledger: Ledger,
        configured: Mapping[str, Sequence[Rule]],
        environment: str,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the flags that hold where the database has none of that name."""
        self._ledger = ledger
        self._configured = configured
        self._environment = environment
        self._clock = clock
        self._known: Mapping[str, Sequence[Rule]] | None = None
        self._read_at = 0.0
        self._reading = threading.Lock()
        self._is_away = False

    def is_enabled(self, feature: str, user: FlagUser | None = None) -> bool:
        """Whether a feature is on for a user; one that nobody has heard of is off.

        Without a user, it is on where it is for everybody.
        """
        rules = self._current().get(feature)
        if rules is None:
            rules = self._configured.get(feature, ())
        return on_for(rules, feature, self._environment, user)

    def enabled(self, user: FlagUser) -> list[str]:
        """The names of all features that are on for a user."""
        names = {*self._configured, *self._current()}
        return sorted(name for name in names if self.is_enabled(name, user))

    def check(self, feature: str, user: FlagUser) -> None:
        """Raise `FeatureOff` where a feature is not on for this user."""
        if not self.is_enabled(feature, user):
            raise FeatureOff(
                f"The feature {feature} is not on for you. An administrator turns it on: "
                f"promptstack flags set {feature} on."
            )

    def forget(self) -> None:
        """Read the flags again at the next use."""
        self._read_at = -math.inf

    def _current(self) -> Mapping[str, Sequence[Rule]]:
        known = self._known
        if known is not None and self._clock() - self._read_at < REREAD_SECONDS:
            return known
        # Who comes first reads; only where nothing is known yet do others wait for it.
        if not self._reading.acquire(blocking=known is None):
            return known or {}
        try:
            if self._known is None or self._clock() - self._read_at >= REREAD_SECONDS:
                self._reread()
            return self._known or {}
        finally:
            self._reading.release()

    def _reread(self) -> None:
        began = self._clock()
        try:
            with self._ledger.transaction() as unit:
                unit.limit_statements(STATEMENT_SECONDS)
                rows = {row.name: row.rules for row in unit.flags.get_all(MAX_FLAGS)}
        except PromptStackError as error:
            if not self._is_away:
                logger.warning("feature flags stay as they were: %s", error)
            self._is_away = True
            self._known = self._known or {}
            self._read_at = self._clock()
            return
        self._is_away = False
        self._known = {name: stored_rules(name, rules) for name, rules in rows.items()}
        self._read_at = began
