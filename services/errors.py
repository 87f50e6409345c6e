"""The errors of callers and of jobs."""

from promptstack.config.errors import PromptStackError, Reach


class InvalidInput(PromptStackError):
    """The caller's input can't be accepted; nothing was stored."""

    code = "INVALID_INPUT"

    def __init__(
        self,
        message: str,
        *,
        pointer: str = "",
        detail: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Take a JSON `pointer` (RFC 6901) to the field at fault, where it is known."""
        super().__init__(message, detail=detail, retry_after=retry_after)
        self.pointer = pointer


class UnknownProvider(InvalidInput):
    """The named provider isn't registered."""

    code = "UNKNOWN_PROVIDER"


class UnknownModel(InvalidInput):
    """The provider doesn't have the named model, or not for this kind of job."""

    code = "UNKNOWN_MODEL"


class InputTooLong(InvalidInput):
    """The input is longer than its model certainly takes; nothing was asked."""

    code = "INPUT_TOO_LONG"


class AmbiguousId(InvalidInput):
    """Several ids begin with the given characters."""

    code = "AMBIGUOUS_ID"


class NotFound(PromptStackError):
    """The ledger does not have it, or it belongs to another user."""

    code = "NOT_FOUND"


class NoAnswer(PromptStackError):
    """The job has ended without an answer."""

    code = "NO_ANSWER"


class EmbeddedElsewhere(PromptStackError):
    """Another job embeds the same passages now; this one will use its vectors."""

    code = "EMBEDDED_ELSEWHERE"
    transient = True
    counts_as_failure = False


class BudgetReached(PromptStackError):
    """The run may cost no more: the next call could take it over its limit."""

    code = "BUDGET_REACHED"
    reach = Reach.RUN


class KeyBudgetReached(BudgetReached):
    """The API key may cost no more for now: the next call could take it over a spend cap."""

    code = "KEY_BUDGET_REACHED"


class UserBudgetReached(BudgetReached):
    """The user may cost no more for now: the next call could take them over a spend cap."""

    code = "USER_BUDGET_REACHED"


class DeploymentBudgetReached(BudgetReached):
    """The deployment may cost no more for now: the next call could take it over a spend cap."""

    code = "DEPLOYMENT_BUDGET_REACHED"


class CostUnknown(BudgetReached):
    """A spend cap holds, and nobody knows how much the call can cost."""

    code = "COST_UNKNOWN"


class BudgetHeld(PromptStackError):
    """Calls under way may cost all that is left of the run's limit; the shard waits for them."""

    code = "BUDGET_HELD"
    transient = True
    counts_as_failure = False
    backs_off = False


class SpendingHeld(BudgetHeld):
    """Calls under way may cost all that is left of a spend cap; the call waits for them.

    Waits grow: thousands of jobs may wait for one cap.
    """

    backs_off = True


class TriedLater(PromptStackError):
    """Items that failed are tried again after a while; nothing else of the shard is left."""

    code = "TRIED_LATER"
    transient = True
    counts_as_failure = False
    backs_off = False


class WorkersLost(PromptStackError):
    """Workers died repeatedly while they did this work alone."""

    code = "WORKER_LOST"


class DeadlinePassed(PromptStackError):
    """The job's deadline passed before it was done."""

    code = "EXPIRED"
    reach = Reach.SERVER


class IdempotencyConflict(PromptStackError):
    """The idempotency key was used for another request before."""

    code = "IDEMPOTENCY_CONFLICT"


class WrongState(PromptStackError):
    """The state of the job does not allow this."""

    code = "WRONG_STATE"


class NotYet(WrongState):
    """The state does not allow this for a moment longer."""

    transient = True


class NotAuthenticated(PromptStackError):
    """Nothing that came with the request says who sends it."""

    code = "NOT_AUTHENTICATED"


class KeyRevoked(NotAuthenticated):
    """The API key was revoked."""

    code = "KEY_REVOKED"


class KeyExpired(NotAuthenticated):
    """The API key's time is over."""

    code = "KEY_EXPIRED"


class UserDisabled(NotAuthenticated):
    """The user may not sign in any more, nor may their keys."""

    code = "USER_DISABLED"


class NotPermitted(PromptStackError):
    """The caller is known, and may not do this."""

    code = "NOT_PERMITTED"


class FeatureOff(NotPermitted):
    """The caller's feature flag is off."""

    code = "FEATURE_OFF"


def run_ending_codes(kind: type[PromptStackError] = PromptStackError) -> set[str]:
    """The codes of the errors that end a run."""
    own = {kind.code} if kind.reach is Reach.RUN else set()
    return own.union(*map(run_ending_codes, kind.__subclasses__()))
