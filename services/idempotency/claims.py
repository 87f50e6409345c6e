"""A request with an idempotency key makes its object once, however often it is sent."""

from uuid import UUID

from promptstack.repositories.idempotency import KeyedRequest, Made
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import IdempotencyConflict


class SecretShownBefore(IdempotencyConflict):
    """The request made its object before, and the secret was shown then and only then."""

    code = "SECRET_SHOWN_BEFORE"


def claim(unit: UnitOfWork, request: KeyedRequest | None, object_id: UUID) -> UUID | None:
    """Note in the transaction that makes an object that this request makes it; None is done.

    Else the id of the object that it has made before: the caller makes none and answers with that.
    A request without a key makes a new one each time. Raises `IdempotencyConflict` where the key
    was used for another request.
    """
    if request is None:
        return None
    return _checked(unit.idempotency_keys.claim(request, object_id), request)


def made_before(unit: UnitOfWork, request: KeyedRequest) -> UUID | None:
    """Return the id of what this request has made before, to spare the work of making it.

    Two at once may both find nothing, so whoever makes it claims it all the same. Raises
    `IdempotencyConflict` as `claim` does.
    """
    return _checked(unit.idempotency_keys.find(request), request)


def _checked(made: Made | None, request: KeyedRequest) -> UUID | None:
    if made is None:
        return None
    if not made.is_by(request):
        raise IdempotencyConflict(
            f"The idempotency key was used for another request ({made.action}, {made.object_id}); "
            "send a new key for a new request."
        )
    return made.object_id


def claim_secret(unit: UnitOfWork, request: KeyedRequest | None, object_id: UUID) -> None:
    """Claim as `claim` does, for an object whose secret is shown once.

    Raises `SecretShownBefore` where this request has made it.
    """
    made = claim(unit, request, object_id)
    if made is not None:
        raise SecretShownBefore(
            f"This request was done before ({made}), and its secret was shown then. Send a new "
            "idempotency key to get another secret."
        )
