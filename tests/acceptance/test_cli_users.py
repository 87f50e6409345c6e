"""`promptstack users`, as a person and a script use it."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from promptstack.repositories.access_models import Role
from promptstack.services.access.errors import SessionRevoked
from promptstack.services.access.sessions import Origin
from promptstack.tasks.worker_services import WorkerServices
from tests.acceptance.test_cli import COMMAND, command_environment
from tests.conftest import PASSWORD
from tests.processes import run

Users = Callable[..., CompletedProcess[str]]
AT = Origin()


@pytest.fixture
def users(environment: dict[str, str]) -> Users:
    """Runs `promptstack users ...` to its end."""

    def command(*arguments: str, stdin: str = "") -> CompletedProcess[str]:
        return run(
            [COMMAND, "users", *arguments],
            command_environment(environment),
            stdin=stdin.encode(),
        )

    return command


def all_of(users: Users, *commands: Sequence[str]) -> list[CompletedProcess[str]]:
    """Run commands at the same time."""
    with ThreadPoolExecutor(4) as pool:
        return [*pool.map(lambda command: users(*command), commands)]


def test_users_are_added_shown_and_changed(
    users: Users, stack: WorkerServices, tmp_path: Path
) -> None:
    made = users(
        *("create", "Root@Example.org", "--super-admin", "--password-file", "-", "--json"),
        stdin=f"{PASSWORD}\n",
    )
    assert made.returncode == 0, made.stderr
    root = json.loads(made.stdout)
    assert (root["email"], root["role"], root["has_password"]) == (
        "root@example.org",
        "super_admin",
        True,
    )
    stack.sign_in.for_tokens("root@example.org", PASSWORD, AT)
    assert PASSWORD not in made.stdout + made.stderr

    file = tmp_path / "password"
    file.write_text("four brown bears drink tea\n")
    ada = ("create", "ada@example.org", "--name", "Ada Lovelace", "--tier", "pro", "--beta")
    added, eve = all_of(
        users,
        (*ada, "--provider", "demo", "--password-file", str(file)),
        ("create", "eve@example.org", "--no-password"),
    )
    assert (added.returncode, eve.returncode) == (0, 0), added.stderr + eve.stderr
    assert "Ada Lovelace" in added.stdout
    tokens = stack.sign_in.for_tokens("ada@example.org", "four brown bears drink tea", AT)

    listed, found, shown, by_id = all_of(
        users,
        ("list",),
        ("list", "lovelace", "--json"),
        ("show", "ADA@example.org", "--json"),
        ("show", root["id"], "--json"),
    )
    assert listed.stdout.count("@example.org") == 3
    [item] = json.loads(found.stdout)["items"]
    assert item == json.loads(shown.stdout)
    assert (item["tier"], item["is_beta_tester"], item["preferred_provider"]) == (
        "pro",
        True,
        "demo",
    )
    assert json.loads(by_id.stdout)["email"] == "root@example.org"

    raised, reset = all_of(
        users,
        ("set-role", "eve@example.org", "admin"),
        ("reset-password", "ada@example.org", "--no-password"),
    )
    assert (raised.returncode, reset.returncode) == (0, 0), raised.stderr + reset.stderr
    assert stack.users.get(stack.users.find("eve@example.org")).role is Role.ADMIN
    assert users("disable", "eve@example.org").returncode == 0
    assert stack.users.get(stack.users.find("eve@example.org")).disabled_at is not None
    assert users("enable", "eve@example.org", "--json").returncode == 0
    with pytest.raises(SessionRevoked):
        stack.sessions.authenticate(tokens.access_token)


def test_wrong_requests_say_why_in_one_line(
    users: Users, stack: WorkerServices, tmp_path: Path
) -> None:
    stack.users.create("root@example.org", role=Role.SUPER_ADMIN)
    weak = tmp_path / "weak"
    weak.write_text("password1234")
    wrong = {
        "is the last super_admin": ("disable", "root@example.org"),
        "the last super_admin": ("set-role", "root@example.org", "user"),
        "no user nobody@example.org": ("show", "nobody@example.org"),
        "already": ("create", "ROOT@example.org", "--no-password"),
        "is not an e-mail address": ("create", "ada", "--no-password"),
        "--password-file FILE": ("create", "ada@example.org"),
        "exclude each other": (
            *("create", "ada@example.org", "--no-password"),
            *("--password-file", "-"),
        ),
        "too easily guessed": ("create", "ada@example.org", "--password-file", str(weak)),
        "can't be read: FileNotFoundError": (
            *("reset-password", "root@example.org"),
            *("--password-file", str(tmp_path / "none")),
        ),
        "no provider 'nobody'": (
            *("create", "ada@example.org", "--no-password"),
            *("--provider", "nobody"),
        ),
    }
    for (reason, _), done in zip(wrong.items(), all_of(users, *wrong.values()), strict=True):
        assert done.returncode == 2, reason
        assert reason in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
    assert [user.email for user in stack.users.get_many()] == ["root@example.org"]
