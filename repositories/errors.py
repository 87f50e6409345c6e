"""What can go wrong in the ledger."""

from promptstack.config.errors import PromptStackError


class UnknownFilter(PromptStackError):
    """A query named a column that the table doesn't have."""

    code = "UNKNOWN_FILTER"


class UnknownUser(PromptStackError):
    """Something is to belong to a user whom the ledger does not have."""

    code = "UNKNOWN_USER"


class ClaimLost(PromptStackError):
    """The job is no longer this attempt's: it was cancelled, has expired or runs elsewhere."""

    code = "CLAIM_LOST"


class TransientLedgerError(PromptStackError):
    """The ledger couldn't do it now; the same may work in a moment."""

    code = "LEDGER_BUSY"
    transient = True


class LedgerUnavailable(TransientLedgerError):
    """PostgreSQL can't be reached."""

    code = "LEDGER_UNAVAILABLE"

    def for_operators(self) -> str:
        """The sentence, and what the driver said, which names hosts and users."""
        said = (self.detail or "").strip().partition("\n")[0]
        return f"{self} The driver said: {said}." if said else str(self)


class LedgerCrowded(LedgerUnavailable):
    """All connections of this process to PostgreSQL were in use for too long."""


class LedgerReadOnly(LedgerUnavailable):
    """PostgreSQL answers but takes no writes."""

    code = "LEDGER_READ_ONLY"


class LedgerSlow(TransientLedgerError):
    """PostgreSQL is there, and ended a transaction that took too long between or within steps."""

    code = "LEDGER_SLOW"


class LedgerRefused(PromptStackError):
    """PostgreSQL answers, but refuses one change again and again."""

    code = "LEDGER_REFUSED"
    transient = True


class IndexNotBuilt(PromptStackError):
    """PostgreSQL could not build the search index of a model."""

    code = "INDEX_NOT_BUILT"
    transient = True


class LedgerConflict(TransientLedgerError):
    """Two transactions got in each other's way, and PostgreSQL ended this one."""

    code = "LEDGER_CONFLICT"


class LedgerOutdated(PromptStackError):
    """The database's schema isn't the one that this code needs."""

    code = "LEDGER_OUTDATED"


class RightsMissing(PromptStackError):
    """The database's role, or its server, can't do what the schema needs."""

    code = "RIGHTS_MISSING"
