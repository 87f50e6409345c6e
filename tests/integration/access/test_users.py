"""Users: who adds, sees and changes them, by HTTP and by the command line's service."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient

from promptstack.config.errors import PromptStackError
from promptstack.repositories.access_models import Role, Scope
from promptstack.repositories.pages import PageQuery
from promptstack.services.access.caller import EVERYTHING, Caller
from promptstack.services.access.emails import OPERATOR, normalised_email
from promptstack.services.access.users import UserView
from promptstack.services.errors import InvalidInput, NotFound, NotPermitted, WrongState
from promptstack.tasks.composition import PromptStack
from promptstack.tasks.worker_services import WorkerServices
from tests.conftest import PASSWORD
from tests.fakes import FakeProvider
from tests.http import problem
from tests.processes import PATIENCE

USERS = "/api/v1/users"


def caller(user: UserView, *scopes: Scope) -> Caller:
    return Caller(
        user_id=user.id,
        email=user.email,
        role=user.role,
        scopes=frozenset(scopes) or EVERYTHING,
    )


@pytest.fixture
def admin(stack: WorkerServices) -> UserView:
    return stack.users.create("admin@example.org", role=Role.ADMIN)


@pytest.fixture
def root(stack: WorkerServices) -> UserView:
    return stack.users.create("root@example.org", role=Role.SUPER_ADMIN)


def sign_in(client: TestClient, stack: PromptStack, user: UserView) -> None:
    stack.users.reset_password(user.id, PASSWORD)
    body = {"email": user.email, "password": PASSWORD}
    answer = client.post("/api/v1/auth/login", json=body).json()
    client.headers["Authorization"] = f"Bearer {answer['access_token']}"


# E-mails


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("Ada@Example.ORG ", "ada@example.org"),
        ("A\u0308da@example.org", "\u00e4da@example.org"),
        (OPERATOR, OPERATOR),
        ("a.b+c@mail.example.co.uk", "a.b+c@mail.example.co.uk"),
        ("a@xn--exmple-cua.de", "a@ex\u00e4mple.de"),
        ("a@EX\u00c4MPLE.de", "a@ex\u00e4mple.de"),
        ("a@stra\u00dfe.de", "a@stra\u00dfe.de"),
        ("a@xn--strae-oqa.de", "a@stra\u00dfe.de"),
        ("a@strasse.de", "a@strasse.de"),
    ],
)
def test_an_address_has_one_spelling(given: str, kept: str) -> None:
    assert normalised_email(given) == kept


@pytest.mark.parametrize(
    "given",
    [
        *("", "ada", "@example.org", "ada@", "a@b@c", "a b@c.org", "a@b\n.org", "<a@b.org>"),
        *("a@.org", "a@b.org, c@d.org", "a\x00@b.org"),
        *(
            "a\u200b@b.org",
            "\uff41@b.org",
            "\ufeffa@b.org",
            "a@b\u00ad.org",
            ".a@b.org",
            "a..b@c.org",
        ),
        *("a.@b.org", "a@b..org", "a@" + "b" * 64 + ".org", "a@xn--a.org"),
        "x" * 65 + "@example.org",
        "a@" + "b" * 260,
    ],
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(InvalidInput):
        normalised_email(given)


def test_an_address_is_taken_in_any_case(stack: WorkerServices) -> None:
    stack.users.create("ada@example.org")
    for spelling in ("ada@example.org", "ADA@EXAMPLE.ORG", "Ada@example.org "):
        with pytest.raises(WrongState):
            stack.users.create(spelling)
    # A key for a user who is there is theirs, and adds nobody.
    stack.keys.create("ADA@Example.org", "laptop")
    assert [user.email for user in stack.users.get_many()] == ["ada@example.org"]


def test_of_many_who_add_the_same_user_at_once_one_does(stack: WorkerServices) -> None:
    together = threading.Barrier(4, timeout=PATIENCE)

    def add(_: int) -> bool:
        together.wait()
        try:
            stack.users.create("ada@example.org")
        except WrongState:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(add, range(4))) == 1


def test_users_are_found_by_name_and_address_literally(stack: WorkerServices) -> None:
    stack.users.create("ada@example.org", name="Ada Lovelace")
    stack.users.create("eve_100%@example.org", name="Eve")
    stack.users.create("bob@example.org", name="LOVELY Bob", role=Role.ADMIN)

    def found(query: str, **more: Any) -> list[str]:
        return [user.email.split("@")[0] for user in stack.users.get_many(query, **more)]

    assert found("lovel") == ["ada", "bob"]
    assert found("_100%") == ["eve_100%"]
    assert found("%") == ["eve_100%"]
    assert found("", role=Role.ADMIN) == ["bob"]
    first = stack.users.get_many(limit=2)
    [bob] = stack.users.get_page(PageQuery(after=first[-1].id)).rows
    assert bob.email == "bob@example.org"
    assert stack.users.find(str(first[0].id)[:18].upper()) == first[0].id
    assert stack.users.find("ADA@example.org") == first[0].id
    with pytest.raises(NotFound):
        stack.users.find("nobody@example.org")
    with stack.ledger.transaction() as unit:
        assert [user.email for user in unit.users.get_admins()] == ["bob@example.org"]


# Who may change whom


def test_only_super_admins_make_and_change_administrators(
    stack: WorkerServices, admin: UserView, root: UserView
) -> None:
    user = stack.users.create("ada@example.org")
    by_admin, by_root = caller(admin), caller(root)
    attempts: list[Callable[[], UserView]] = [
        lambda: stack.users.create("new@example.org", by=by_admin, role=Role.ADMIN),
        lambda: stack.users.change(user.id, by=by_admin, role=Role.ADMIN),
        lambda: stack.users.change(admin.id, by=by_admin, role=Role.SUPER_ADMIN),
        lambda: stack.users.change(root.id, by=by_admin, disabled=True),
        lambda: stack.users.change(root.id, by=by_admin, name="x"),
        lambda: stack.users.reset_password(root.id, PASSWORD, by=by_admin),
        lambda: stack.users.change(
            user.id, by=caller(root, Scope.JOBS_WRITE), role=Role.SUPER_ADMIN
        ),
        lambda: stack.users.change(user.id, by=caller(user), tier="enterprise"),
        lambda: stack.users.change(admin.id, by=caller(user), name="x"),
        lambda: stack.users.reset_password(root.id, PASSWORD, by=by_root),
    ]
    for attempt in attempts:
        with pytest.raises(NotPermitted):
            attempt()
    assert stack.users.change(user.id, by=by_admin, tier="pro", is_beta_tester=True).tier == "pro"
    assert stack.users.change(admin.id, by=by_admin, name="Me").name == "Me"
    assert stack.users.change(user.id, by=by_root, role=Role.ADMIN).role is Role.ADMIN
    assert stack.users.change(user.id, by=caller(user), name="Ada").name == "Ada"


def test_the_last_super_admin_stays_one(stack: WorkerServices, root: UserView) -> None:
    stack.keys.create(OPERATOR, "command line")  # the operator is one, too, and nobody
    for change in ({"disabled": True}, {"role": Role.ADMIN}, {"role": Role.USER}):
        with pytest.raises(WrongState):
            stack.users.change(root.id, **change)
    other = stack.users.create("other@example.org", role=Role.SUPER_ADMIN)
    assert stack.users.change(root.id, role=Role.USER).role is Role.USER
    with pytest.raises(WrongState):
        stack.users.change(other.id, disabled=True)
    for change in ({"disabled": True}, {"role": Role.USER}):
        with pytest.raises(NotPermitted):
            stack.users.change(stack.users.find(OPERATOR), **change)


def test_two_who_demote_each_other_at_once_leave_one(stack: WorkerServices, root: UserView) -> None:
    other = stack.users.create("other@example.org", role=Role.SUPER_ADMIN)
    for _ in range(5):
        together = threading.Barrier(2, timeout=PATIENCE)

        def demote(user: UserView, together: threading.Barrier = together) -> str:
            together.wait()
            try:
                stack.users.change(user.id, role=Role.USER)
            except PromptStackError as error:
                return error.code
            return ""

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(demote, (root, other))) == ["", "WRONG_STATE"]
        for user in (root, other):
            stack.users.change(user.id, role=Role.SUPER_ADMIN)


def test_what_is_done_with_users_is_recorded(stack: WorkerServices, root: UserView) -> None:
    by = caller(root)
    user = stack.users.create("ada@example.org", by=by, password=PASSWORD)
    stack.users.change(user.id, by=by, role=Role.ADMIN, tier="pro")
    stack.users.change(user.id, by=by, disabled=True)
    stack.users.change(user.id, by=by, disabled=True)
    stack.users.change(user.id, by=by, disabled=False)
    stack.users.reset_password(user.id, None, by=by)
    entries = stack.audit.get_many(object_id=str(user.id), newest_first=False)
    assert [entry.action for entry in entries] == [
        "user.created",
        "user.changed",
        "user.role_changed",
        "user.disabled",
        "user.enabled",
        "user.password_reset",
    ]
    assert {entry.email for entry in entries} == {"root@example.org"}
    assert entries[1].detail == {"changed": ["tier"]}
    assert entries[2].detail == {"before": "user", "after": "admin"}
    assert PASSWORD not in str(entries)


# By HTTP


def test_administrators_manage_users(
    client: TestClient, stack: WorkerServices, admin: UserView
) -> None:
    sign_in(client, stack, admin)
    body = {
        "email": "Ada@Example.org",
        "name": "Ada Lovelace",
        "tier": "pro",
        "preferred_provider": "demo",
        "password": PASSWORD,
    }
    made = client.post(USERS, json=body)
    assert made.status_code == 201
    user = made.json()
    assert (user["email"], user["tier"], user["has_password"]) == ("ada@example.org", "pro", True)
    assert "hash" not in made.text
    problem(client.post(USERS, json=body), 409, "WRONG_STATE")
    page = client.get(USERS, params={"query": "lovelace"}).json()
    assert ([each["id"] for each in page["users"]], page["after"]) == ([user["id"]], None)
    page = client.get(USERS, params={"limit": 1}).json()
    assert client.get(USERS, params={"after": page["after"]}).json()["users"] == [user]

    mine = f"{USERS}/{user['id']}"
    changed = client.patch(mine, json={"preferred_provider": None, "disabled": True}).json()
    assert (changed["preferred_provider"], changed["name"]) == (None, "Ada Lovelace")
    assert changed["disabled_at"] is not None
    login = {"email": "ada@example.org", "password": PASSWORD}
    problem(client.post("/api/v1/auth/login", json=login), 401, "SIGN_IN_REFUSED")
    assert client.patch(mine, json={"disabled": False}).json()["disabled_at"] is None
    assert client.post("/api/v1/auth/login", json=login).status_code == 200
    assert client.post(f"{mine}/password", json={"password": None}).json()["has_password"] is False
    problem(client.post("/api/v1/auth/login", json=login), 401, "SIGN_IN_REFUSED")


def test_a_user_sees_and_changes_oneself(
    auth_client: TestClient, test_user: UserView, admin: UserView
) -> None:
    mine, theirs = f"{USERS}/{test_user.id}", f"{USERS}/{admin.id}"
    assert auth_client.get(mine).json()["email"] == "ada@example.org"
    changed = auth_client.patch(mine, json={"name": "Ada", "preferred_provider": "demo"})
    assert (changed.json()["name"], changed.json()["preferred_provider"]) == ("Ada", "demo")
    problem(auth_client.get(theirs), 403, "NOT_PERMITTED")
    problem(auth_client.patch(theirs, json={"name": "x"}), 403, "NOT_PERMITTED")
    problem(auth_client.patch(mine, json={"role": "super_admin"}), 403, "NOT_PERMITTED")
    problem(auth_client.patch(mine, json={"disabled": False}), 403, "NOT_PERMITTED")
    problem(auth_client.get(f"{USERS}/{uuid4()}"), 404, "NOT_FOUND")
    problem(auth_client.get(USERS), 403, "NOT_PERMITTED")
    problem(auth_client.post(USERS, json={"email": "x@example.org"}), 403, "NOT_PERMITTED")


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x" * 201},
        {"name": "a\nb"},
        {"name": None},
        {"tier": "gold"},
        {"role": "root"},
        {"preferred_provider": "nobody"},
        {"preferred_provider": "local"},  # makes no generations
        {"is_beta_tester": "perhaps"},
        {"password": PASSWORD},
        {"email": "other@example.org"},
    ],
)
def test_a_wrong_change_is_refused(
    auth_client: TestClient, test_user: UserView, stack: WorkerServices, body: dict[str, Any]
) -> None:
    stack.users.change(test_user.id, role=Role.SUPER_ADMIN)
    answer = auth_client.patch(f"{USERS}/{test_user.id}", json=body)
    assert (answer.status_code, answer.json()["title"]) == (422, "Unprocessable Content")
    assert stack.users.get(test_user.id).name == "Ada Lovelace"


def test_a_role_acts_at_once(
    auth_client: TestClient, test_user: UserView, stack: WorkerServices
) -> None:
    problem(auth_client.get(USERS), 403, "NOT_PERMITTED")
    stack.users.change(test_user.id, role=Role.ADMIN)
    assert auth_client.get(USERS).status_code == 200
    stack.users.change(test_user.id, role=Role.USER)
    problem(auth_client.get(USERS), 403, "NOT_PERMITTED")


# The first administrator


def test_the_first_super_admin_is_added_once_and_never_changed(
    stack: WorkerServices, quick_hashes: object
) -> None:
    together = threading.Barrier(3, timeout=PATIENCE)

    def add(number: int) -> bool:
        together.wait()
        return stack.users.create_first_admin(
            "Root@example.org", lambda: f"{PASSWORD} by {number} winds"
        )

    stack.keys.create(OPERATOR, "command line")
    with ThreadPoolExecutor(3) as pool:
        assert sum(pool.map(add, range(3))) == 1
    [root] = stack.users.get_many("root@example.org")
    assert root.role is Role.SUPER_ADMIN

    def never() -> str:
        raise AssertionError("the password is read only where it is needed")

    assert not stack.users.create_first_admin("root@example.org", never)
    # Another address later makes no second one.
    assert not stack.users.create_first_admin("other@example.org", never)


def test_a_user_who_is_there_does_not_become_the_first_super_admin(stack: WorkerServices) -> None:
    user = stack.users.create("ada@example.org")

    def never() -> str:
        raise AssertionError("read in vain")

    assert not stack.users.create_first_admin("ADA@example.org", never)
    assert stack.users.get(user.id) == user


def test_the_first_super_admin_has_no_weak_password(stack: WorkerServices) -> None:
    with pytest.raises(InvalidInput):
        stack.users.create_first_admin("root@example.org", lambda: "change-me")
    assert stack.users.get_many() == []


def test_no_id_is_a_user(stack: WorkerServices) -> None:
    with pytest.raises(NotFound):
        stack.users.change(UUID(int=1), name="x")


# The provider that a user prefers


def test_runs_and_jobs_that_name_no_provider_go_to_the_one_that_their_user_prefers(
    stack: WorkerServices, fake_llm: FakeProvider
) -> None:
    ada = stack.users.create("ada@example.org", preferred_provider=fake_llm.name)
    eve = stack.users.create("eve@example.org")
    for user_id, provider in ((ada.id, "fake"), (eve.id, "demo"), (None, "demo")):
        run = stack.runs.generate(["Hello."], user_id=user_id)
        job = stack.jobs.enqueue_generation("Hello.", user_id=user_id)
        assert (run.provider, job.provider) == (provider, provider)
        named = stack.runs.generate(["Hello."], user_id=user_id, provider="demo")
        assert named.provider == "demo"
