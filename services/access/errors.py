"""Why nobody is signed in: each reason has a code, and none tells whether an account exists."""

from promptstack.config.errors import PromptStackError
from promptstack.services.errors import NotAuthenticated, NotPermitted


class SignInRefused(NotAuthenticated):
    """The e-mail address and the password don't belong together."""

    code = "SIGN_IN_REFUSED"


class TooManyAttempts(PromptStackError):
    """Too many passwords were tried for this account, or from this address."""

    code = "TOO_MANY_ATTEMPTS"
    transient = True

    def __init__(
        self, message: str, *, retry_after: float | None = None, is_news: bool = True
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.is_news = is_news
        """Whether it is the first for a while: others are not worth a line of the audit log."""


class TooManyRequests(PromptStackError):
    """The API key has sent as many requests as it may for now."""

    code = "TOO_MANY_REQUESTS"
    transient = True


class SignInBusy(PromptStackError):
    """More people sign in at this moment than the server has room for."""

    code = "SIGN_IN_BUSY"
    transient = True


class TokenExpired(NotAuthenticated):
    """The access token's time is over; a refresh token gets a new one."""

    code = "TOKEN_EXPIRED"


class TokenNotYetValid(NotAuthenticated):
    """The access token is from the future: a clock is wrong."""

    code = "TOKEN_NOT_YET_VALID"


class TokenOfOtherAudience(NotAuthenticated):
    """The access token is for another service."""

    code = "TOKEN_WRONG_AUDIENCE"


class TokenOfOtherIssuer(NotAuthenticated):
    """The access token was made by another service."""

    code = "TOKEN_WRONG_ISSUER"


class TokenNotSigned(NotAuthenticated):
    """The access token isn't signed by this server's key, or not in its way."""

    code = "TOKEN_BAD_SIGNATURE"


class TokenMalformed(NotAuthenticated):
    """What came as an access token is none, or lacks something."""

    code = "TOKEN_MALFORMED"


class RefreshTokenInvalid(NotAuthenticated):
    """The server has made no such refresh token, or it is long gone."""

    code = "REFRESH_TOKEN_INVALID"


class RefreshTokenReused(NotAuthenticated):
    """A refresh token came twice: somebody else may have it, so the session is ended."""

    code = "REFRESH_TOKEN_REUSED"


class SessionRevoked(NotAuthenticated):
    """The session was ended."""

    code = "SESSION_REVOKED"


class SessionExpired(NotAuthenticated):
    """The session's time is over."""

    code = "SESSION_EXPIRED"


class SessionInvalid(NotAuthenticated):
    """There is no such session."""

    code = "SESSION_INVALID"


class IdentityNotTrusted(NotAuthenticated):
    """Only a trusted proxy may say who somebody is."""

    code = "IDENTITY_NOT_TRUSTED"


class IdentityUnknown(NotAuthenticated):
    """The proxy names somebody who is no user here."""

    code = "IDENTITY_UNKNOWN"


class ForgedRequest(NotPermitted):
    """A browser's request doesn't show that it comes from our own pages."""

    code = "CSRF_FAILED"
