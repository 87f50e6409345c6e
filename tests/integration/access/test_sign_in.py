"""Signing in: passwords, tokens, cookies and what a trusted proxy says."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import anyio
import jwt
import pytest
from anyio import create_task_group
from fastapi.testclient import TestClient
from httpx2 import Response
from pwdlib import PasswordHash
from pwdlib.hashers.argon2 import Argon2Hasher
from sqlalchemy import func, select, update

from promptstack.api.http.app import create_app
from promptstack.api.http.browsers import CSRF_HEADER, csrf_cookie, session_cookie
from promptstack.api.http.sessions import LOGINS_AT_ONCE, MOST_WAITING, LoginSlots
from promptstack.config.settings import Settings
from promptstack.repositories.access_models import RefreshToken, SignInSession, User
from promptstack.services.access.access_tokens import AUDIENCE, ISSUER
from promptstack.services.access.attempt_limits import ACCOUNT
from promptstack.services.access.errors import RefreshTokenReused, SignInBusy
from promptstack.services.access.passwords import HASHES_AT_ONCE, Passwords
from promptstack.services.access.sessions import MOST_SESSIONS, Origin
from promptstack.services.access.signing import SigningKey
from promptstack.services.access.users import UserView
from promptstack.services.errors import NotAuthenticated
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.worker_services import WorkerServices
from tests.conftest import PASSWORD
from tests.fakes import FakeProvider
from tests.http import problem
from tests.jobs import execute
from tests.processes import PATIENCE

AUTH = "/api/v1/auth"
ORIGIN = Origin("192.0.2.7", "test")


def log_in(client: TestClient, password: str = PASSWORD, **more: Any) -> Response:
    body = {"email": "ada@example.org", "password": password, **more}
    return client.post(f"{AUTH}/login", json=body)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def columns(stack: WorkerServices, column: Any) -> list[Any]:
    with stack.ledger.transaction() as unit:
        return list(unit.session.scalars(select(column)))


def test_a_user_signs_in_and_works_and_signs_out(
    auth_client: TestClient, test_user: UserView, fake_llm: FakeProvider, stack: WorkerServices
) -> None:
    stack.users.change(test_user.id, preferred_provider="fake")
    me = auth_client.get(f"{AUTH}/me").json()
    assert (me["id"], me["email"], me["signed_in_by"]) == (
        str(test_user.id),
        "ada@example.org",
        "session",
    )
    job = auth_client.post("/api/v1/generations", json={"prompt": "Hello."}).json()
    # The job names no provider: it goes to the one that its user prefers.
    assert job["provider"] == "fake"
    execute(stack, UUID(job["id"]))
    assert fake_llm.prompts == ["Hello."]
    assert auth_client.get(f"/api/v1/jobs/{job['id']}").json()["state"] == "succeeded"
    assert auth_client.post(f"{AUTH}/logout").status_code == 204
    problem(auth_client.get(f"{AUTH}/me"), 401, "SESSION_REVOKED")


@pytest.mark.parametrize("spelling", ["ADA@EXAMPLE.ORG", " ada@Example.org "])
def test_an_address_is_the_same_in_any_case(
    client: TestClient, test_user: UserView, spelling: str
) -> None:
    body = {"email": spelling, "password": PASSWORD}
    assert client.post(f"{AUTH}/login", json=body).status_code == 200


def test_nothing_tells_whether_an_account_exists(
    client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    stack.users.create("proxy@example.org")  # has no password
    disabled = stack.users.create("gone@example.org", password=PASSWORD)
    stack.users.change(disabled.id, disabled=True)
    compared: list[str | None] = []
    verify = stack.passwords.verify

    def watch(password: str, kept: str | None) -> tuple[bool, str | None]:
        compared.append(kept)
        return verify(password, kept)

    stack.passwords.verify = watch  # type: ignore[method-assign]
    answers = [
        client.post(f"{AUTH}/login", json={"email": email, "password": password})
        for email, password in (
            ("ada@example.org", "not her password"),
            ("nobody@example.org", PASSWORD),
            ("proxy@example.org", PASSWORD),
            ("gone@example.org", PASSWORD),
            ("operator@localhost", ""),
            ("no address at all", PASSWORD),
        )
    ]
    bodies = {answer.text for answer in answers}
    assert len(bodies) == 1
    problem(answers[0], 401, "SIGN_IN_REFUSED")
    # A hash was computed for each of them: that is what takes the time.
    assert len(compared) == len(answers)


def test_a_hash_for_nobody_has_todays_parameters(quick_hashes: Passwords) -> None:
    kept = quick_hashes.hash(PASSWORD)
    assert kept.rpartition("$")[0].rpartition("$")[0] == "$argon2id$v=19$m=8,t=1,p=1"
    assert quick_hashes._nobodys.startswith("$argon2id$v=19$m=8,t=1,p=1$")
    assert quick_hashes.verify("of nobody", None) == (False, None)


def test_a_hash_is_renewed_when_its_parameters_rise(
    client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    assert log_in(client).status_code == 200
    before = columns(stack, User.password_hash)
    stack.passwords._hasher = PasswordHash((Argon2Hasher(2, 16, 1),))
    assert log_in(client, "a wrong password").status_code == 401
    assert columns(stack, User.password_hash) == before
    assert log_in(client).status_code == 200
    [after] = columns(stack, User.password_hash)
    assert after.startswith("$argon2id$v=19$m=16,t=2,p=1$")
    assert log_in(client).status_code == 200


# Tokens


def claims(user: UserView, session_id: UUID | None = None, **changed: Any) -> dict[str, Any]:
    now = int(time.time())
    made = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(user.id),
        "sid": str(session_id or uuid4()),
        "jti": "x",
        "iat": now,
        "exp": now + 600,
    }
    return {name: value for name, value in (made | changed).items() if value is not None}


def test_each_fault_of_a_token_has_its_code(
    client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    key = SigningKey.derive(stack.settings.secret_key.get_secret_value(), "access-tokens")
    other = SigningKey.derive("somebody else's secret", "access-tokens")
    wide = SigningKey("", key.secret * 2)
    csrf = SigningKey.derive(stack.settings.secret_key.get_secret_value(), "csrf")
    now = int(time.time())
    log_in(client)
    [session_id] = columns(stack, SignInSession.id)

    def code(
        changed: dict[str, Any], by: SigningKey = key, algorithm: str = "HS256", **header: str
    ) -> str:
        said = claims(test_user, session_id, **changed)
        secret: Any = None if algorithm == "none" else by.secret
        token = jwt.encode(said, secret, algorithm, headers={"kid": by.id, **header})
        answer = client.get(f"{AUTH}/me", headers=bearer(token))
        return (
            ""
            if answer.status_code == 200
            else str(problem(answer, 401, answer.json()["code"])["code"])
        )

    assert code({}) == ""
    assert code({"exp": now - 61}) == "TOKEN_EXPIRED"
    assert code({"iat": now + 90, "exp": now + 900}) == "TOKEN_NOT_YET_VALID"
    assert code({"aud": "promptstack:other"}) == "TOKEN_WRONG_AUDIENCE"
    assert code({"iss": "somebody"}) == "TOKEN_WRONG_ISSUER"
    assert code({}, algorithm="none") == "TOKEN_BAD_SIGNATURE"
    assert code({}, by=wide, algorithm="HS384", kid=key.id) == "TOKEN_BAD_SIGNATURE"
    assert code({}, by=other) == "TOKEN_BAD_SIGNATURE"
    assert code({}, by=other, kid=key.id) == "TOKEN_BAD_SIGNATURE"
    assert code({}, by=csrf) == "TOKEN_BAD_SIGNATURE"
    for name in ("aud", "exp", "iat", "iss", "jti", "sid", "sub"):
        assert code({name: None}).startswith("TOKEN_")
    assert code({"sid": "no id"}) == "TOKEN_MALFORMED"
    assert code({"sid": str(uuid4())}) == "SESSION_INVALID"
    assert code({"sub": str(uuid4())}) == "SESSION_INVALID"
    for token in ("x", "a.b.c", "eyJhbGciOiJIUzI1NiJ9.e30.x", "\u00fc"):
        answer = client.get(f"{AUTH}/me", headers=bearer(token.encode()))  # type: ignore[arg-type]
        assert answer.json()["code"] in {"TOKEN_MALFORMED", "TOKEN_BAD_SIGNATURE"}


def test_the_end_of_a_session_acts_at_once(
    client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    def tokens() -> dict[str, Any]:
        answer: dict[str, Any] = log_in(client).json()
        return answer

    def refused(tokens: dict[str, Any], code: str) -> None:
        problem(client.get(f"{AUTH}/me", headers=bearer(tokens["access_token"])), 401, code)
        body = {"refresh_token": tokens["refresh_token"]}
        problem(client.post(f"{AUTH}/refresh", json=body), 401, code)

    first, second = tokens(), tokens()
    ended = client.post(f"{AUTH}/logout-everywhere", headers=bearer(first["access_token"]))
    assert ended.json() == {"sessions": 2}
    refused(first, "SESSION_REVOKED")
    refused(second, "SESSION_REVOKED")

    old = tokens()
    with stack.ledger.transaction() as unit:
        unit.session.execute(update(SignInSession).values(expires_at=func.now()))
    refused(old, "SESSION_EXPIRED")

    theirs = tokens()
    stack.users.change(test_user.id, disabled=True)
    refused(theirs, "USER_DISABLED")
    stack.users.change(test_user.id, disabled=False)
    refused(theirs, "SESSION_REVOKED")
    assert log_in(client).status_code == 200


def test_a_refresh_token_works_once_and_its_session_ends_with_the_second_use(
    client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    first = log_in(client).json()
    second = client.post(f"{AUTH}/refresh", json={"refresh_token": first["refresh_token"]}).json()
    assert client.get(f"{AUTH}/me", headers=bearer(second["access_token"])).status_code == 200
    again = client.post(f"{AUTH}/refresh", json={"refresh_token": first["refresh_token"]})
    problem(again, 401, "REFRESH_TOKEN_REUSED")
    # Thief and owner are both out.
    problem(
        client.post(f"{AUTH}/refresh", json={"refresh_token": second["refresh_token"]}),
        401,
        "SESSION_REVOKED",
    )
    for tokens in (first, second):
        answer = client.get(f"{AUTH}/me", headers=bearer(tokens["access_token"]))
        problem(answer, 401, "SESSION_REVOKED")
    unknown = client.post(f"{AUTH}/refresh", json={"refresh_token": "psr_nobody's"})
    problem(unknown, 401, "REFRESH_TOKEN_INVALID")
    kept = columns(stack, RefreshToken.token_hash)
    assert not {first["refresh_token"], second["refresh_token"]} & {*kept}
    [reuse] = stack.audit.get_many(action="sign_in.token_reused")
    assert reuse.email == test_user.email


def test_of_two_refreshes_at_once_one_is_the_second(
    stack: WorkerServices, test_user: UserView
) -> None:
    tokens = stack.sign_in.for_tokens(test_user.email, PASSWORD, ORIGIN)
    together = threading.Barrier(4, timeout=PATIENCE)

    def refresh(_: int) -> str:
        together.wait()
        try:
            stack.sessions.refresh(tokens.refresh_token, ORIGIN)
        except RefreshTokenReused:
            return "reused"
        return "renewed"

    with ThreadPoolExecutor(4) as pool:
        outcomes = sorted(pool.map(refresh, range(4)))
    assert outcomes == ["renewed", "reused", "reused", "reused"]
    with pytest.raises(NotAuthenticated):
        stack.sessions.authenticate(tokens.access_token)


def test_used_tokens_and_sessions_do_not_pile_up(
    stack: WorkerServices, test_user: UserView
) -> None:
    tokens = stack.sign_in.for_tokens(test_user.email, PASSWORD, ORIGIN)
    for _ in range(3):
        tokens = stack.sessions.refresh(tokens.refresh_token, ORIGIN)
    assert len(columns(stack, RefreshToken.token_hash)) == 4
    with stack.ledger.transaction() as unit:
        old = func.now() - timedelta(days=stack.settings.refresh_token_expire_days + 1)
        used = update(RefreshToken).where(RefreshToken.used_at.is_not(None))
        unit.session.execute(used.values(used_at=old))
    stack.sessions.refresh(tokens.refresh_token, ORIGIN)
    assert len(columns(stack, RefreshToken.token_hash)) == 2
    with stack.ledger.transaction() as unit:
        user = unit.users.get(test_user.id)
        assert user is not None
        for _ in range(MOST_SESSIONS + 5):
            stack.sessions.open_tokens(unit, user, ORIGIN)
    assert len(columns(stack, SignInSession.id)) == MOST_SESSIONS
    with pytest.raises(NotAuthenticated):
        stack.sessions.authenticate(tokens.access_token)


def test_the_time_of_the_last_request_is_written_once_a_minute(
    auth_client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    def seen() -> tuple[Any, Any]:
        return columns(stack, User.last_seen_at)[0], columns(stack, SignInSession.last_used_at)[0]

    assert auth_client.get(f"{AUTH}/me").status_code == 200
    before = seen()
    assert all(before)
    assert auth_client.get(f"{AUTH}/me").status_code == 200
    assert seen() == before
    with stack.ledger.transaction() as unit:
        long_ago = func.now() - timedelta(minutes=2)
        unit.session.execute(update(User).values(last_seen_at=long_ago))
        unit.session.execute(update(SignInSession).values(last_used_at=long_ago))
    assert auth_client.get(f"{AUTH}/me").status_code == 200
    assert all(later > earlier for later, earlier in zip(seen(), before, strict=True))


# Passwords


def test_a_password_is_changed_and_other_sessions_end(
    auth_client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    other = stack.sign_in.for_tokens(test_user.email, PASSWORD, ORIGIN)
    new = "five yellow kites over water"

    def change(current: str, new: str) -> Response:
        body = {"current_password": current, "new_password": new}
        return auth_client.post(f"{AUTH}/password", json=body)

    problem(change("not this one", new), 401, "SIGN_IN_REFUSED")
    problem(change(PASSWORD, "password1234"), 422, "INVALID_INPUT")
    assert change(PASSWORD, new).status_code == 204
    assert auth_client.get(f"{AUTH}/me").status_code == 200
    with pytest.raises(NotAuthenticated):
        stack.sessions.authenticate(other.access_token)
    assert log_in(auth_client).status_code == 401
    assert log_in(auth_client, new).status_code == 200
    actions = [entry.action for entry in stack.audit.get_many(action="user.password_changed")]
    assert len(actions) == 2  # the one that was refused, too


@pytest.mark.parametrize(
    ("password", "why"),
    [
        ("short one", "12 to 128"),
        ("x" * 129, "12 to 128"),
        ("password1234", "guessed"),
        ("aaaaaaaaaaaaaaaa", "guessed"),
        ("lovelacelovelace", "guessed"),
        ("ada@example.org", "guessed"),
        ("promptstackpromptstack", "guessed"),
        ("three green\x00 boats sail", "NUL"),
    ],
)
def test_a_weak_password_is_refused_and_never_quoted(
    auth_client: TestClient, password: str, why: str
) -> None:
    body = {"current_password": PASSWORD, "new_password": password}
    answer = auth_client.post(f"{AUTH}/password", json=body)
    refusal = problem(answer, 422, "INVALID_INPUT")
    said = refusal["detail"] + str(refusal.get("errors"))
    assert why in said or ("128" in said and len(password) > 128)
    assert password not in answer.text


# Browsers


@pytest.fixture
def browser(client: TestClient, test_user: UserView) -> TestClient:
    answer = log_in(client, cookie=True)
    assert set(answer.json()) == {"csrf_token"}
    return client


def test_a_cookie_signs_in_and_a_change_needs_the_token(
    browser: TestClient, stack: WorkerServices
) -> None:
    token = browser.cookies[csrf_cookie(stack.settings)]
    assert browser.get(f"{AUTH}/me").json()["signed_in_by"] == "session"
    body = {"prompt": "Hello."}
    wrong: tuple[dict[str, str], ...] = (
        {},
        {CSRF_HEADER: "x" * 64},
        {CSRF_HEADER: token, "Sec-Fetch-Site": "cross-site"},
        {CSRF_HEADER: token, "Sec-Fetch-Site": "same-site"},
        {CSRF_HEADER: token, "Origin": "https://evil.example"},
        {CSRF_HEADER: token, "Origin": "null"},
    )
    for headers in wrong:
        answer = browser.post("/api/v1/generations", json=body, headers=headers)
        problem(answer, 403, "CSRF_FAILED")
    right: tuple[dict[str, str], ...] = (
        {CSRF_HEADER: token},
        {CSRF_HEADER: token, "Sec-Fetch-Site": "same-origin", "Origin": "http://changed.example"},
        {CSRF_HEADER: token, "Origin": "http://testserver"},
    )
    for headers in right:
        answer = browser.post("/api/v1/generations", json=body, headers=headers)
        assert answer.status_code == 202, answer.text
    assert browser.post(f"{AUTH}/logout", headers={CSRF_HEADER: token}).status_code == 204
    assert not browser.cookies


def test_a_token_of_another_session_is_none(browser: TestClient, stack: WorkerServices) -> None:
    first = browser.cookies[csrf_cookie(stack.settings)]
    log_in(browser, cookie=True)
    assert browser.cookies[csrf_cookie(stack.settings)] != first
    problem(browser.post(f"{AUTH}/logout", headers={CSRF_HEADER: first}), 403, "CSRF_FAILED")


def test_the_cookie_is_hidden_from_scripts_and_from_other_sites(
    client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    said = log_in(client, cookie=True).headers.get_list("set-cookie")
    session, csrf = sorted(said, key=lambda each: "csrf" in each)
    assert "HttpOnly" in session
    assert "HttpOnly" not in csrf
    for each in said:
        assert "SameSite=lax" in each
        assert "Path=/" in each
        assert "Secure" not in each
    production = stack.settings.model_copy(update={"environment": "production"})
    assert session_cookie(production) == "__Host-promptstack"
    assert session.split("=", 2)[1].split(";")[0] not in columns(stack, SignInSession.cookie_hash)
    problem(
        client.post(
            f"{AUTH}/login",
            json={"email": "ada@example.org", "password": PASSWORD, "cookie": True},
            headers={"Origin": "https://evil.example"},
        ),
        403,
        "CSRF_FAILED",
    )


def test_a_key_goes_before_a_cookie(browser: TestClient, stack: WorkerServices) -> None:
    key = stack.keys.create("eve@example.org", "test")
    answer = browser.get(f"{AUTH}/me", headers=bearer(key))
    assert (answer.json()["email"], answer.json()["signed_in_by"]) == ("eve@example.org", "key")
    # It needs no CSRF token, and has no session to end.
    problem(browser.post(f"{AUTH}/logout", headers=bearer(key)), 403, "NOT_PERMITTED")


def test_in_production_a_cookie_is_for_this_host_and_for_tls(
    stack: WorkerServices, test_user: UserView
) -> None:
    stack.settings = stack.settings.model_copy(update={"environment": "production"})
    with TestClient(create_app(stack), base_url="https://testserver") as client:
        said = log_in(client, cookie=True).headers.get_list("set-cookie")
        assert [each.split("=")[0] for each in said] == [
            "__Host-promptstack",
            "__Host-promptstack-csrf",
        ]
        assert all("Secure" in each and "Domain" not in each for each in said)
        assert client.get(f"{AUTH}/me").status_code == 200


# Proxies

HEADER = "X-Forwarded-Email"
Proxied = Callable[..., TestClient]


@pytest.fixture
def proxied(stack: WorkerServices, test_user: UserView) -> Proxied:
    """A client at an address, of a server behind a trusted proxy."""

    def client(address: str = "10.1.2.3", **changed: object) -> TestClient:
        settings = {
            "trusted_identity_header": HEADER,
            "trusted_proxies": ["10.0.0.0/8", "fd00::/8"],
            **changed,
        }
        valid = type(stack.settings).model_validate(stack.settings.model_dump() | settings)
        stack.settings = valid
        stack.__dict__.pop("sign_in", None)
        return TestClient(create_app(stack), client=(address, 1234))

    return client


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"])
def test_a_trusted_proxy_says_who_it_is(proxied: Proxied, address: str) -> None:
    client = proxied(address)
    answer = client.get(f"{AUTH}/me", headers={HEADER: "ADA@example.org"})
    assert (answer.json()["email"], answer.json()["signed_in_by"]) == ("ada@example.org", "proxy")
    problem(client.get(f"{AUTH}/me"), 401, "NOT_AUTHENTICATED")
    problem(client.get(f"{AUTH}/me", headers={HEADER: "eve@example.org"}), 401, "IDENTITY_UNKNOWN")
    problem(client.get(f"{AUTH}/me", headers={HEADER: "ada"}), 401, "IDENTITY_UNKNOWN")
    twice = [(HEADER, "ada@example.org"), (HEADER, "eve@example.org")]
    problem(client.get(f"{AUTH}/me", headers=twice), 401, "IDENTITY_NOT_TRUSTED")
    # The proxy's own cookie comes with the requests of other sites.
    forged = {HEADER: "ada@example.org", "Sec-Fetch-Site": "cross-site"}
    problem(client.post("/api/v1/operations", json={}, headers=forged), 403, "CSRF_FAILED")


@pytest.mark.parametrize("address", ["192.0.2.1", "11.0.0.1", "fe80::1", "testclient"])
def test_anybody_elses_word_counts_for_nothing(proxied: Proxied, address: str) -> None:
    client = proxied(address)
    headers = {HEADER: "ada@example.org", "X-Forwarded-For": "10.1.2.3"}
    problem(client.get(f"{AUTH}/me", headers=headers), 401, "IDENTITY_NOT_TRUSTED")
    log_in(client, cookie=True)
    assert client.get(f"{AUTH}/me", headers=headers).json()["signed_in_by"] == "session"


def test_a_disabled_user_comes_in_by_no_proxy(
    proxied: Proxied, test_user: UserView, stack: WorkerServices
) -> None:
    stack.users.change(test_user.id, disabled=True)
    answer = proxied().get(f"{AUTH}/me", headers={HEADER: "ada@example.org"})
    problem(answer, 401, "USER_DISABLED")


def test_who_the_proxy_names_becomes_a_user_if_that_is_wanted(
    proxied: Proxied, stack: WorkerServices
) -> None:
    client = proxied(trusted_identity_creates_users=True)
    for _ in range(2):
        answer = client.get(f"{AUTH}/me", headers={HEADER: "New@example.org"})
        assert (answer.json()["email"], answer.json()["role"]) == ("new@example.org", "user")
    [entry] = stack.audit.get_many(action="user.created", actor="new@example.org")
    assert entry.actor_kind == "proxy"


def test_the_senders_address_is_believed_as_far_as_trusted_proxies_wrote_it(
    proxied: Proxied, stack: WorkerServices
) -> None:
    for peer, forwarded, expected in (
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("10.0.0.1", "198.51.100.1", "198.51.100.1"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.1, 10.0.0.2", "198.51.100.1"),
        ("10.0.0.1", "junk, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("::ffff:10.0.0.1", "2001:db8::1", "2001:db8::1"),
    ):
        client = proxied(peer)
        client.post(
            f"{AUTH}/login",
            json={"email": "ada@example.org", "password": "wrong"},
            headers={"X-Forwarded-For": forwarded},
        )
        assert stack.audit.get_many(limit=1)[0].address == expected


# Under load, and in outages


def test_people_sign_in_while_redis_is_away(
    stack: WorkerServices, test_user: UserView, settings: Settings
) -> None:
    with PromptStack(settings, stack.database_url, "redis://127.0.0.1:1/0") as alone:
        alone.passwords = stack.passwords
        with TestClient(create_app(alone)) as client:
            assert log_in(client).status_code == 200
            answers = [log_in(client, "wrong") for _ in range(ACCOUNT.attempts)]
            # A share of the limit holds, and it is told until when.
            assert sorted({each.status_code for each in answers}) == [401, 429]
            assert int(answers[-1].headers["Retry-After"]) > 0


def test_few_hashes_are_computed_at_once_and_no_thread_waits_for_its_turn(
    client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    running, most = 0, 0
    lock = threading.Lock()
    verify = stack.passwords.verify

    def watch(password: str, kept: str | None) -> tuple[bool, str | None]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            time.sleep(0.05)  # others have the time to come in
            return verify(password, kept)
        finally:
            with lock:
                running -= 1

    stack.passwords.verify = watch  # type: ignore[method-assign]
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda _: log_in(client).status_code, range(8))]
    assert answers == [200] * 8
    assert most == HASHES_AT_ONCE


def test_more_than_can_wait_are_told_to_come_again() -> None:
    slots = LoginSlots()

    async def crowd() -> list[str]:
        opened = threading.Event()
        outcomes: list[str] = []

        async def one() -> None:
            try:
                await slots.run(lambda: opened.wait(30))
                outcomes.append("in")
            except SignInBusy as error:
                outcomes.append("busy" if error.retry_after else "")
                opened.set()

        async with create_task_group() as group:
            for _ in range(LOGINS_AT_ONCE + MOST_WAITING + 3):
                group.start_soon(one)
        return outcomes

    outcomes = anyio.run(crowd)
    assert outcomes.count("busy") == 3
    assert outcomes.count("in") == LOGINS_AT_ONCE + MOST_WAITING


# What is sent


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("login", {"email": "a" * 255, "password": PASSWORD}),
        ("login", {"email": "ada@example.org", "password": "secret-" * 30}),
        ("login", {"email": "ada@example.org", "password": PASSWORD, "remember": True}),
        ("login", {"email": "ada@example.org"}),
        ("login", {f"field{number}": "x" for number in range(200)}),
        ("refresh", {"refresh_token": "x" * 201}),
        ("refresh", {"refresh_token": 5}),
        ("refresh", {}),
    ],
)
def test_a_wrong_form_is_refused_in_words(
    client: TestClient, path: str, body: dict[str, Any]
) -> None:
    answer = client.post(f"{AUTH}/{path}", json=body)
    problem(answer, 422, "INVALID_INPUT")
    assert "secret-" not in answer.text
    assert PASSWORD not in answer.text


def test_a_large_body_of_a_stranger_is_not_read(client: TestClient) -> None:
    body = {"email": "ada@example.org", "password": PASSWORD, "more": "x" * 40_000}
    answer = client.post(f"{AUTH}/login", json=body)
    assert "32,000 bytes" in problem(answer, 422, "INVALID_INPUT")["detail"]
