"""Browsers: the cookies of a session, and proof that a request comes from a page of ours.

A browser adds cookies to every request, whichever site made it, and so does a proxy with its own
sign-in. So what changes something also needs what another site can't send.
"""

from urllib.parse import urlsplit

from fastapi import Request, Response

from promptstack.api.http.peers import address_of, comes_from_trusted_proxy
from promptstack.config.settings import Settings
from promptstack.services.access.caller import Caller
from promptstack.services.access.errors import ForgedRequest, IdentityNotTrusted
from promptstack.services.access.sessions import BrowserSession
from promptstack.tasks.composition import PromptStack

CSRF_HEADER = "X-CSRF-Token"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def session_cookie(settings: Settings) -> str:
    """The name of the cookie; `__Host-` lets no other host of the domain set it."""
    return "__Host-promptstack" if settings.is_production else "promptstack"


def csrf_cookie(settings: Settings) -> str:
    """The name of the cookie that our pages read and send back."""
    return f"{session_cookie(settings)}-csrf"


def set_cookies(response: Response, session: BrowserSession, settings: Settings) -> None:
    """Give a browser its session."""
    for name, value, is_hidden in (
        (session_cookie(settings), session.cookie, True),
        (csrf_cookie(settings), session.csrf_token, False),
    ):
        response.set_cookie(
            name,
            value,
            max_age=session.lifetime_seconds,
            path="/",
            secure=settings.is_production,
            httponly=is_hidden,
            samesite="lax",
        )


def clear_cookies(response: Response, settings: Settings) -> None:
    """Let a browser forget its session."""
    for name in (session_cookie(settings), csrf_cookie(settings)):
        response.delete_cookie(name, path="/", secure=settings.is_production, samesite="lax")


def browser_caller(request: Request) -> Caller | None:
    """Who sends a request without a key and a token: by a trusted proxy, or by a cookie.

    Raises `NotAuthenticated`, and `ForgedRequest` where another site may have made the request.
    """
    stack: PromptStack = request.app.state.stack
    header = stack.settings.trusted_identity_header
    identities = request.headers.getlist(header) if header else []
    if identities and comes_from_trusted_proxy(request):
        if len(identities) > 1:
            raise IdentityNotTrusted(f"{header} came more than once: the proxy must replace it.")
        check_own_page(request)
        return stack.sign_in.by_proxy(identities[0], address_of(request))
    cookie = request.cookies.get(session_cookie(stack.settings))
    if cookie:
        check_own_page(request)
        caller = stack.sessions.authenticate_cookie(cookie, address_of(request))
        if request.method not in SAFE_METHODS:
            token = request.headers.get(CSRF_HEADER, "")
            stack.sessions.check_csrf(caller.session_id, token)
        return caller
    if identities:
        raise IdentityNotTrusted(f"{header} is taken from the proxies in TRUSTED_PROXIES only.")
    return None


def check_own_page(request: Request) -> None:
    """Raise `ForgedRequest` where a browser says that another site makes a change here."""
    if request.method in SAFE_METHODS:
        return
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        is_ours = site in {"same-origin", "none"}
    else:
        origin = request.headers.get("Origin")
        is_ours = origin is None or _is_host_of(request, origin)
    if not is_ours:
        raise ForgedRequest("The request was made by another site than this one.")


def _is_host_of(request: Request, origin: str) -> bool:
    stack: PromptStack = request.app.state.stack
    try:
        said = urlsplit(origin).netloc.lower()
    except ValueError:
        return False
    hosts = {request.headers.get("Host", "").lower()}
    # A proxy may have changed Host. Patterns such as *.example.org are no proof.
    hosts |= {host.lower() for host in stack.settings.allowed_hosts if "*" not in host}
    return said in hosts or said.partition(":")[0] in hosts
