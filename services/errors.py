"""What a caller can do wrong, and what can be wrong with a job."""

from promptstack.config.errors import PromptStackError, Reach


class InvalidInput(PromptStackError):
    """The caller sent something that can't be accepted; nothing was stored."""

    code = "INVALID_INPUT"


class UnknownProvider(InvalidInput):
    """The named provider isn't registered."""

    code = "UNKNOWN_PROVIDER"


class UnknownModel(InvalidInput):
    """The provider doesn't have the named model, or not for this kind of job."""

    code = "UNKNOWN_MODEL"


class AmbiguousId(InvalidInput):
    """The beginning of an id fits several."""

    code = "AMBIGUOUS_ID"


class NotFound(PromptStackError):
    """What was asked for isn't in the ledger, or isn't the caller's."""

    code = "NOT_FOUND"


class EmbeddedElsewhere(PromptStackError):
    """Another job embeds the same passages now; its vectors will serve this one too."""

    code = "EMBEDDED_ELSEWHERE"
    transient = True
    counts_as_failure = False


class WorkersLost(PromptStackError):
    """Workers died again and again with this work in hand, and with no other."""

    code = "WORKER_LOST"


class DeadlinePassed(PromptStackError):
    """The job's deadline passed before it was done."""

    code = "EXPIRED"
    reach = Reach.SERVER


class IdempotencyConflict(PromptStackError):
    """The same idempotency key came with another request."""

    code = "IDEMPOTENCY_CONFLICT"


class WrongState(PromptStackError):
    """The job is in a state that doesn't allow this."""

    code = "WRONG_STATE"


class NotAuthenticated(PromptStackError):
    """No valid API key came with the request."""

    code = "NOT_AUTHENTICATED"
