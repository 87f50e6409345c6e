"""Signing in at a running server: tokens, keys, clocks, limits, the first administrator."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
from httpx2 import Client, Response
from sqlalchemy import text

from promptstack.repositories.access_models import Role, SignInSession
from promptstack.services.access.access_tokens import AccessTokens
from promptstack.services.access.attempt_limits import ACCOUNT
from promptstack.services.access.signing import SigningKeys
from promptstack.services.access.users import UserView
from promptstack.tasks.worker_services import WorkerServices
from tests.conftest import PASSWORD
from tests.doors import Door
from tests.http import problem
from tests.integration.invariants.test_messages_carry_ids import everything_in
from tests.processes import run

MARK = "marmalade"
AUTH = "/api/v1/auth"
Doors = Callable[..., Door]


@pytest.fixture
def open_client(open_door: Doors, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Client]:
    """A client of a new server with these settings."""

    def opened(**variables: str) -> Client:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Client(base_url=open_door().url, timeout=60)

    return opened


def log_in(client: Client, password: str = PASSWORD, **more: Any) -> Response:
    body = {"email": "ada@example.org", "password": password, **more}
    return client.post(f"{AUTH}/login", json=body)


def refresh(client: Client, tokens: dict[str, Any]) -> Response:
    return client.post(f"{AUTH}/refresh", json={"refresh_token": tokens["refresh_token"]})


def me(client: Client, token: str) -> Response:
    return client.get(f"{AUTH}/me", headers={"Authorization": f"Bearer {token}"})


def test_a_refresh_token_that_comes_twice_ends_its_session(
    test_user: UserView, open_client: Callable[..., Client]
) -> None:
    with open_client() as client:
        other = log_in(client).json()
        tokens = log_in(client).json()
        for _ in range(3):
            tokens = refresh(client, tokens).json()
            assert me(client, tokens["access_token"]).status_code == 200
        with ThreadPoolExecutor(6) as pool:
            answers = [*pool.map(lambda _: refresh(client, tokens), range(6))]
        renewed = [answer for answer in answers if answer.status_code == 200]
        assert len(renewed) == 1
        for answer in answers:
            if answer not in renewed:
                problem(answer, 401, "REFRESH_TOKEN_REUSED")
        newest = renewed[0].json()
        problem(me(client, newest["access_token"]), 401, "SESSION_REVOKED")
        problem(refresh(client, newest), 401, "SESSION_REVOKED")
        # A session of the same person elsewhere goes on.
        assert me(client, other["access_token"]).status_code == 200


def test_attempts_are_limited_and_the_answer_says_until_when(
    test_user: UserView, stack: WorkerServices, open_client: Callable[..., Client]
) -> None:
    eve = stack.users.create("eve@example.org", password=PASSWORD)
    with open_client() as client, ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda _: log_in(client, "wrong"), range(ACCOUNT.attempts + 4))]
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [401] * ACCOUNT.attempts + [429] * 4
        refused = log_in(client)  # the right password, too: nobody learns that it is
        assert str(problem(refused, 429, "TOO_MANY_ATTEMPTS")["detail"]).startswith("Too many")
        assert 0 < int(refused.headers["Retry-After"]) <= ACCOUNT.seconds_each
        # An account that nobody has is limited alike, and others are not.
        body = {"email": "nobody@example.org", "password": "wrong"}
        unknown = [client.post(f"{AUTH}/login", json=body) for _ in range(ACCOUNT.attempts + 1)]
        assert [each.status_code for each in unknown] == [401] * ACCOUNT.attempts + [429]
        body = {"email": eve.email, "password": PASSWORD}
        assert client.post(f"{AUTH}/login", json=body).status_code == 200
    entries = stack.audit.get_many(action="sign_in", limit=100)
    assert len([entry for entry in entries if entry.action == "sign_in.limited"]) == 1


def test_clocks_may_differ_by_a_minute_and_no_more(
    test_user: UserView, stack: WorkerServices, open_client: Callable[..., Client]
) -> None:
    with open_client() as client:
        log_in(client)
        with stack.ledger.transaction() as unit:
            [session] = unit.session.query(SignInSession).all()
        keys = SigningKeys("access-tokens", [stack.settings.secret_key.get_secret_value()])

        def answer(seconds: float, lifetime: int = 600) -> Response:
            """To a token of a server whose clock is off by so much."""
            tokens = AccessTokens(
                keys, lifetime_seconds=lifetime, clock=lambda: time.time() + seconds
            )
            return me(client, tokens.make(test_user.id, session.id))

        # Ten seconds to spare, for a machine that is busy.
        assert answer(0).status_code == 200
        assert answer(50).status_code == 200
        assert answer(-10, lifetime=1).status_code == 200
        assert answer(-50, lifetime=10).status_code == 200
        problem(answer(75), 401, "TOKEN_NOT_YET_VALID")
        problem(answer(-75, lifetime=10), 401, "TOKEN_EXPIRED")


def test_a_new_secret_key_signs_nobody_out(
    test_user: UserView, stack: WorkerServices, open_client: Callable[..., Client]
) -> None:
    old, new = "an old secret " * 4, "a new secret " * 4
    with open_client(SECRET_KEY=old) as client:
        tokens = log_in(client).json()
        csrf = log_in(client, cookie=True).json()["csrf_token"]
        cookies = dict(client.cookies)

    def change(client: Client) -> Response:
        return client.post(
            "/api/v1/generations", json={"prompt": "Hello."}, headers={"X-CSRF-Token": csrf}
        )

    with open_client(SECRET_KEY=new, PREVIOUS_SECRET_KEY=old) as client:
        assert me(client, tokens["access_token"]).status_code == 200
        after = refresh(client, tokens).json()
        assert me(client, after["access_token"]).status_code == 200
        client.cookies.update(cookies)
        assert change(client).status_code == 202
    kinds = [jwt.get_unverified_header(each["access_token"])["kid"] for each in (tokens, after)]
    assert kinds[0] != kinds[1]
    with open_client(SECRET_KEY=new, PREVIOUS_SECRET_KEY="") as client:
        # A week later the old one is taken away, and no token of it is left.
        problem(me(client, tokens["access_token"]), 401, "TOKEN_BAD_SIGNATURE")
        assert me(client, after["access_token"]).status_code == 200
        assert refresh(client, after).status_code == 200
        client.cookies.update(cookies)
        assert client.get(f"{AUTH}/me").status_code == 200
        problem(change(client), 403, "CSRF_FAILED")


def test_the_first_administrator_comes_from_the_settings_once(
    stack: WorkerServices,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "password"
    monkeypatch.setenv("FIRST_ADMIN_EMAIL", "Ada@Example.org")
    monkeypatch.setenv("FIRST_ADMIN_PASSWORD_FILE", str(file))

    def refusal() -> str:
        started = run(["-m", "promptstack.api.http", "--port", "0"], os.environ)
        assert started.returncode == 2
        assert started.stdout == ""
        return started.stderr

    assert "FIRST_ADMIN_PASSWORD_FILE can't be read" in refusal()
    file.write_text("change-me\n")
    assert "12 to 128 characters" in refusal()
    file.write_text(f"{PASSWORD}\n")
    with ExitStack() as opened, ThreadPoolExecutor(3) as pool:
        doors = [*pool.map(lambda number: Door(tmp_path / f"{number}.log"), range(3))]
        for door in doors:
            opened.enter_context(door)
        [admin] = stack.users.get_many()
        assert (admin.email, admin.role) == ("ada@example.org", Role.SUPER_ADMIN)
        for door in doors:
            with Client(base_url=door.url, timeout=60) as client:
                assert log_in(client).status_code == 200
        assert sum("is the first super_admin" in door.log() for door in doors) == 1
        assert not any(PASSWORD in door.log() for door in doors)
    # A later start reads nothing and changes nothing.
    file.unlink()
    with Door(tmp_path / "later.log") as door, Client(base_url=door.url, timeout=60) as client:
        assert log_in(client).status_code == 200


def test_no_password_and_no_token_is_left_anywhere(
    stack: WorkerServices,
    open_client: Callable[..., Client],
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    password, other = f"{MARK} three green boats", f"{MARK} five yellow kites"
    user = stack.users.create("ada@example.org", password=password)
    with open_client(DEBUG="true") as client:
        tokens = log_in(client, password).json()
        cookie = log_in(client, password, cookie=True)
        headers = {"Authorization": f"Bearer {tokens['access_token']}"}
        answers = [
            log_in(client, f"{MARK} and wrong"),
            log_in(client, MARK * 20),
            client.post(f"{AUTH}/login", json={"email": MARK, "password": password, "more": MARK}),
            client.post(f"{AUTH}/login", content=f'{{"password": "{password}" {MARK}'),
            client.post(f"{AUTH}/refresh", json={"refresh_token": f"psr_{MARK}"}),
            me(client, f"{MARK}.{MARK}.{MARK}"),
            me(client, f"{tokens['access_token']}{MARK}"),
            client.post(
                f"{AUTH}/password",
                json={"current_password": password, "new_password": MARK * 2},
                headers=headers,
            ),
            client.post(
                f"{AUTH}/password",
                json={"current_password": password, "new_password": other},
                headers=headers,
            ),
            me(client, tokens["access_token"]),
            client.get(f"/api/v1/users/{user.id}", headers=headers),
        ]
        refreshed = refresh(client, tokens).json()
        refresh(client, tokens)
    secrets = [
        MARK,
        tokens["access_token"],
        tokens["refresh_token"],
        refreshed["access_token"],
        refreshed["refresh_token"],
        cookie.json()["csrf_token"],
        *cookie.cookies.values(),
    ]
    with stack.ledger.transaction() as unit:
        rows = str(
            [
                unit.session.execute(text(f"SELECT * FROM {table}")).all()
                for table in ("users", "sessions", "refresh_tokens", "audit_log", "api_keys")
            ]
        )
    places = {
        "the log": (tmp_path / "door.log").read_text(),
        "Redis": everything_in(environment["REDIS_URL"]),
        "the ledger": rows,
        "answers": "\n".join(f"{answer.text} {answer.headers}" for answer in answers),
    }
    assert "user.password_changed" in rows
    assert "promptstack:sign-in:" in places["Redis"]
    found = [
        (place, secret[:20])
        for place, said in places.items()
        for secret in secrets
        if secret in said
    ]
    assert found == []


def test_a_key_is_rotated_while_programs_use_it(
    test_user: UserView, stack: WorkerServices, open_client: Callable[..., Client]
) -> None:
    def ask(client: Client, secret: str) -> Response:
        return client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {secret}"})

    with open_client() as client, open_client() as other:
        token = {"Authorization": f"Bearer {log_in(client).json()['access_token']}"}
        made = client.post("/api/v1/keys", json={"name": "nightly"}, headers=token)
        assert made.status_code == 201, made.text
        first, path = made.json()["secret"], f"/api/v1/keys/{made.json()['id']}"
        second = client.post(f"{path}/rotate", headers=token).json()["secret"]
        assert second != first
        for server in (client, other):
            for secret in (first, second):
                assert ask(server, secret).status_code == 200
        with stack.ledger.transaction() as unit:  # a day later
            past = text("UPDATE api_keys SET previous_until = now() - interval '1 second'")
            unit.session.execute(past)
        problem(ask(other, first), 401, "NOT_AUTHENTICATED")
        assert ask(other, second).status_code == 200
        assert client.post(f"{path}/revoke", headers=token).status_code == 200
        for server in (client, other):
            problem(ask(server, second), 401, "KEY_REVOKED")
