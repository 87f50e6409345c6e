"""Signing in and out, and who has signed in."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request, Response, status
from pydantic import BaseModel, ConfigDict, Field, model_validator

from promptstack.api.http.auth import CurrentCaller, Stack
from promptstack.api.http.bodies import refuse_many_fields
from promptstack.api.http.browsers import check_own_page, clear_cookies, set_cookies
from promptstack.api.http.peers import address_of
from promptstack.api.http.route import ProtectedRoute
from promptstack.services.access.caller import Caller
from promptstack.services.access.emails import MAX_EMAIL_CHARACTERS
from promptstack.services.access.errors import SignInBusy
from promptstack.services.access.passwords import HASHES_AT_ONCE, MAX_CHARACTERS
from promptstack.services.access.sessions import Origin, Tokens
from promptstack.services.access.users import UserView
from promptstack.services.errors import NotPermitted

router = APIRouter(prefix="/auth", tags=["sessions"], route_class=ProtectedRoute)

LOGINS_AT_ONCE = HASHES_AT_ONCE
MOST_WAITING = 100
"""Others are told to come again: they would wait longer than anybody does."""
RETRY_AFTER_SECONDS = 5
MAX_TOKEN_CHARACTERS = 200
T = TypeVar("T")

Password = Annotated[str, Field(max_length=MAX_CHARACTERS)]


class Form(BaseModel):
    """A body that is refused where it has anything else."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _few_fields(cls, value: object) -> object:
        return refuse_many_fields(value)


class Login(Form):
    """Who signs in."""

    email: str = Field(max_length=MAX_EMAIL_CHARACTERS)
    password: Password
    cookie: bool = Field(
        False, description="For a browser: answer with cookies instead of tokens in the body."
    )


class Refresh(Form):
    """A refresh token, which is used up by this."""

    refresh_token: str = Field(max_length=MAX_TOKEN_CHARACTERS)


class PasswordChange(Form):
    """A new password of one's own."""

    current_password: Password
    new_password: Password


class TokensAnswer(BaseModel):
    """What a program signs its requests with, as OAuth 2 names it."""

    access_token: str
    """Sent as `Authorization: Bearer ...`."""
    token_type: Literal["Bearer"] = "Bearer"  # noqa: S105 - the name of a scheme
    expires_in: int
    """Seconds until the access token expires."""
    refresh_token: str
    """Used once, for the next two tokens. Using it twice ends the session."""

    @classmethod
    def of(cls, tokens: Tokens) -> "TokensAnswer":
        """The tokens as they are answered."""
        return cls(**vars(tokens))


class CookieAnswer(BaseModel):
    """The session is in cookies."""

    csrf_token: str
    """Sent as `X-CSRF-Token` with each request that changes something."""


class Me(UserView):
    """Who sends this request, and how."""

    signed_in_by: Literal["session", "key", "proxy"]
    scopes: list[str]


class Ended(BaseModel):
    """How many sessions have ended."""

    sessions: int


class LoginSlots:
    """Bounds the logins of a process at once. Those that wait take no thread meanwhile."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(LOGINS_AT_ONCE)
        self._present = 0

    async def run(self, login: Callable[[], T]) -> T:
        """Run a login in a thread, in turn. Raises `SignInBusy`."""
        if self._present >= LOGINS_AT_ONCE + MOST_WAITING:
            raise SignInBusy(
                "Too many people sign in at this moment; try again.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        self._present += 1
        try:
            return await to_thread.run_sync(login, limiter=self._limiter)
        finally:
            self._present -= 1


def origin_of(request: Request) -> Origin:
    """Where a request comes from, as a session keeps it."""
    return Origin(address_of(request), request.headers.get("User-Agent", ""))


@router.post("/login")
async def login(
    body: Login, stack: Stack, request: Request, response: Response
) -> TokensAnswer | CookieAnswer:
    """Sign in by e-mail and password."""
    slots: LoginSlots = request.app.state.login_slots
    origin = origin_of(request)
    response.headers["Cache-Control"] = "no-store"
    if not body.cookie:
        return TokensAnswer.of(
            await slots.run(lambda: stack.sign_in.for_tokens(body.email, body.password, origin))
        )
    check_own_page(request)
    session = await slots.run(lambda: stack.sign_in.for_browser(body.email, body.password, origin))
    set_cookies(response, session, stack.settings)
    return CookieAnswer(csrf_token=session.csrf_token)


@router.post("/refresh")
def refresh(body: Refresh, stack: Stack, request: Request, response: Response) -> TokensAnswer:
    """Get the next tokens for a refresh token, which is used up."""
    response.headers["Cache-Control"] = "no-store"
    return TokensAnswer.of(stack.sessions.refresh(body.refresh_token, origin_of(request)))


@router.post("/logout", status_code=status.HTTP_204_NO_CONTENT)
def logout(stack: Stack, caller: CurrentCaller, response: Response) -> None:
    """End this session: its tokens and its cookie open nothing from now on."""
    _refuse_keys(caller)
    stack.sessions.end(caller)
    clear_cookies(response, stack.settings)


@router.post("/logout-everywhere")
def logout_everywhere(stack: Stack, caller: CurrentCaller, response: Response) -> Ended:
    """End all of your sessions, this one too. API keys stay."""
    _refuse_keys(caller)
    ended = stack.sessions.end_all(caller)
    clear_cookies(response, stack.settings)
    return Ended(sessions=ended)


@router.get("/me")
def get_me(stack: Stack, caller: CurrentCaller) -> Me:
    """Show who you are."""
    way = "key" if caller.key_id else "session" if caller.session_id else "proxy"
    user = stack.users.get(caller.user_id)
    return Me(**dict(user), signed_in_by=way, scopes=sorted(caller.scopes))


@router.post("/password", status_code=status.HTTP_204_NO_CONTENT)
def change_password(
    body: PasswordChange, stack: Stack, caller: CurrentCaller, request: Request
) -> None:
    """Change your password. Your other sessions end."""
    _refuse_keys(caller)
    stack.sign_in.change_password(
        caller, body.current_password, body.new_password, origin_of(request)
    )


def _refuse_keys(caller: Caller) -> None:
    if caller.key_id is not None:
        raise NotPermitted("An API key has no session and no password; sign in for this.")
