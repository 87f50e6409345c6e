"""Who does something, as the audit log names them."""

import getpass
import socket
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from promptstack.repositories.audit_models import ActorKind


class SignedIn(Protocol):
    """What of a caller is recorded. `services/access/caller.py` has it."""

    @property
    def user_id(self) -> UUID: ...
    @property
    def email(self) -> str: ...
    @property
    def key_id(self) -> UUID | None: ...
    @property
    def session_id(self) -> UUID | None: ...
    @property
    def address(self) -> str: ...


@dataclass(frozen=True)
class Actor:
    """Who does something, and from where."""

    kind: ActorKind
    user_id: UUID | None = None
    email: str | None = None
    key_id: UUID | None = None
    address: str = ""

    @classmethod
    def of(cls, caller: SignedIn) -> "Actor":
        """Somebody who has signed in, by a key, a session, or a proxy's word for each request."""
        if caller.key_id is not None:
            kind = ActorKind.KEY
        else:
            kind = ActorKind.PROXY if caller.session_id is None else ActorKind.USER
        return cls(kind, caller.user_id, caller.email, caller.key_id, caller.address)

    @classmethod
    def unknown(cls, address: str, email: str | None = None) -> "Actor":
        """Somebody who has not signed in, or could not."""
        return cls(ActorKind.USER, email=email, address=address)

    @classmethod
    def command_line(cls) -> "Actor":
        """Whoever types a command here: who can read the settings may do everything."""
        return cls(ActorKind.COMMAND_LINE, address=_login())

    @classmethod
    def system(cls) -> "Actor":
        """A process of the product, by itself."""
        return cls(ActorKind.SYSTEM, address=socket.gethostname())


def _login() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = "unknown"  # a container's user may have no name
    return f"{name}@{socket.gethostname()}"
