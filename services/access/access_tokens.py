"""Access tokens: JSON Web Tokens that name a session, signed by a key of SECRET_KEY."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from uuid import UUID, uuid4

from promptstack.services.access.errors import (
    TokenExpired,
    TokenMalformed,
    TokenNotSigned,
    TokenNotYetValid,
    TokenOfOtherAudience,
    TokenOfOtherIssuer,
)
from promptstack.services.access.signing import SigningKeys

ALGORITHM = "HS256"
"""The only one that is accepted; a token's own word for it counts for nothing."""
ISSUER, AUDIENCE = "promptstack", "promptstack:api"
LEEWAY_SECONDS = 60
"""So far may the clocks of servers differ."""
REQUIRED = ["aud", "exp", "iat", "iss", "jti", "sid", "sub"]


@dataclass(frozen=True)
class Claims:
    """What an access token says."""

    user_id: UUID
    session_id: UUID


class AccessTokens:
    """Makes and reads access tokens."""

    def __init__(
        self, keys: SigningKeys, *, lifetime_seconds: int, clock: Callable[[], float] = time.time
    ) -> None:
        self._keys = keys
        self._clock = clock
        self.lifetime_seconds = lifetime_seconds

    def make(self, user_id: UUID, session_id: UUID) -> str:
        """Make a token of a session."""
        import jwt  # noqa: PLC0415 - it takes a tenth of a second, which other commands don't need

        now = int(self._clock())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(user_id),
            "sid": str(session_id),
            "jti": uuid4().hex,
            "iat": now,
            "exp": now + self.lifetime_seconds,
        }
        key = self._keys.current
        return jwt.encode(claims, key.secret, ALGORITHM, headers={"kid": key.id})

    def read(self, token: str) -> Claims:
        """Check a token, and return what it says. Raises `NotAuthenticated`, by the reason."""
        import jwt  # noqa: PLC0415

        try:
            key = self._keys.find(jwt.get_unverified_header(token).get("kid"))
            if key is None:
                raise TokenNotSigned("The access token is signed by no key of this server.")
            # The times are checked below, by our clock.
            said = jwt.decode(
                token,
                key.secret,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                options={"require": REQUIRED, "verify_exp": False, "verify_iat": False},
            )
            claims = Claims(UUID(said["sub"]), UUID(said["sid"]))
            made, expires = float(said["iat"]), float(said["exp"])
        except jwt.InvalidAudienceError:
            raise TokenOfOtherAudience("The access token is for another service.") from None
        except jwt.InvalidIssuerError:
            raise TokenOfOtherIssuer("The access token was made by another service.") from None
        except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
            raise TokenNotSigned("The access token is not signed as this server does.") from None
        except (jwt.InvalidTokenError, TypeError, ValueError):
            raise TokenMalformed("This is no access token of this server.") from None
        now = self._clock()
        if made > now + LEEWAY_SECONDS:
            raise TokenNotYetValid("The access token is from the future; check the clocks.")
        if expires < now - LEEWAY_SECONDS:
            raise TokenExpired("The access token has expired; use the refresh token.")
        return claims
