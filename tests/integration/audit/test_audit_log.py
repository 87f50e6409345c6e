"""The audit log: written with what it tells of, only added to, and free of content."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from promptstack.config.errors import ConfigurationError
from promptstack.config.settings import load_settings
from promptstack.repositories.audit_models import ActorKind, AuditResult
from promptstack.repositories.errors import LedgerUnavailable
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.log import AuditView
from promptstack.services.errors import InvalidInput, WrongState
from promptstack.services.maintenance.reconciler import Cleanup
from promptstack.tasks.worker_services import WorkerServices

DAY = 86_400.0
ADA = Actor(ActorKind.USER, uuid4(), "Ada@example.org", None, "203.0.113.7")
BOB = Actor(ActorKind.KEY, uuid4(), "bob@example.org", uuid4(), "203.0.113.8")
AN_ENTRY = """
    INSERT INTO audit_log (id, at, actor_kind, action, address)
    VALUES (gen_random_uuid(), now() - make_interval(days => :days), 'system', :action, '')
"""


def record(
    stack: WorkerServices, actor: Actor = ADA, action: Action = Action.SIGN_IN, **how: Any
) -> AuditView:
    with stack.ledger.transaction() as unit:
        stack.audit.record(unit, actor=actor, action=action, **how)
    return stack.audit.get_many(limit=1)[0]


def sql(stack: WorkerServices, *statements: str, **given: object) -> None:
    with stack.ledger.transaction() as unit:
        for statement in statements:
            unit.session.execute(text(statement), given)


def test_an_entry_says_who_did_what_on_what_from_where_and_when(stack: WorkerServices) -> None:
    key_id = uuid4()
    entry = record(
        stack,
        BOB,
        Action.KEY_CREATED,
        object=ObjectKind.KEY.of(key_id),
        detail={"name": "nightly", "scopes": {"jobs:write", "jobs:read"}},
    )
    assert (entry.actor_kind, entry.user_id, entry.email) == ("key", BOB.user_id, BOB.email)
    assert (entry.key_id, entry.address) == (BOB.key_id, BOB.address)
    assert (entry.action, entry.result) == ("key.created", AuditResult.OK)
    assert (entry.object_kind, entry.object_id) == ("key", str(key_id))
    assert entry.detail == {"name": "nightly", "scopes": ["jobs:read", "jobs:write"]}
    with stack.ledger.transaction() as unit:
        assert abs((unit.now() - entry.at).total_seconds()) < 60


def test_a_caller_and_a_command_and_a_process_are_actors(stack: WorkerServices) -> None:
    @dataclass(frozen=True)
    class Caller:
        user_id: UUID
        email: str
        key_id: UUID | None
        address: str
        session_id: UUID | None = None

    user, key = uuid4(), uuid4()
    assert Actor.of(Caller(user, "a@b", None, "::1", uuid4())).kind is ActorKind.USER
    assert Actor.of(Caller(user, "a@b", None, "::1")).kind is ActorKind.PROXY
    assert Actor.of(Caller(user, "a@b", key, "::1")) == Actor(
        ActorKind.KEY, user, "a@b", key, "::1"
    )
    typed = record(stack, Actor.command_line())
    assert typed.actor_kind is ActorKind.COMMAND_LINE
    assert "@" in typed.address
    assert record(stack, Actor.system()).actor_kind is ActorKind.SYSTEM


def test_an_entry_is_there_only_with_what_it_tells_of(stack: WorkerServices) -> None:
    def create() -> None:
        with stack.ledger.transaction() as unit:
            stack.audit.record(unit, actor=ADA, action=Action.USER_CREATED)
            raise WrongState("It could not be done.")

    with pytest.raises(WrongState):
        create()
    assert stack.audit.get_many() == []


def test_what_is_refused_is_on_record_though_its_transaction_rolls_back(
    stack: WorkerServices,
) -> None:
    job = ObjectKind.JOB.of("one")

    def retry() -> None:
        retrying: Any = {"actor": ADA, "action": Action.JOB_RETRIED, "object": job}
        with stack.audit.refusals(**retrying), stack.ledger.transaction() as unit:
            stack.audit.record(unit, **retrying)
            raise WrongState("Job one runs.")

    with pytest.raises(WrongState):
        retry()
    [entry] = stack.audit.get_many()
    assert (entry.result, entry.object_id) == (AuditResult.REFUSED, "one")
    assert entry.detail == {"error_code": "WRONG_STATE"}


def test_an_outage_is_no_refusal(stack: WorkerServices) -> None:
    with (
        pytest.raises(LedgerUnavailable),
        stack.audit.refusals(actor=ADA, action=Action.JOB_RETRIED),
    ):
        raise LedgerUnavailable("It is away.")
    assert stack.audit.get_many() == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_log SET email = 'eve@example.org'",
        "UPDATE audit_log SET id = id",
        "DELETE FROM audit_log",
        "TRUNCATE audit_log",
        "TRUNCATE audit_log, users CASCADE",
    ],
)
def test_rows_are_neither_changed_nor_deleted(stack: WorkerServices, statement: str) -> None:
    entry = record(stack)
    sql(stack, AN_ENTRY, days=1_000, action="old")
    with pytest.raises(DBAPIError, match="append only"):
        sql(stack, statement)
    assert entry in stack.audit.get_many()
    assert len(stack.audit.get_many()) == 2


def test_who_says_to_be_the_retention_deletes_nothing_of_the_last_day(
    stack: WorkerServices,
) -> None:
    record(stack)
    for said in ("0", "-1000000"):
        with pytest.raises(DBAPIError, match="append only"):
            sql(
                stack,
                f"SET LOCAL promptstack.audit_retention = '{said}'",
                "DELETE FROM audit_log",
            )
    assert len(stack.audit.get_many()) == 1


def test_what_the_retention_said_holds_for_its_transaction_alone(stack: WorkerServices) -> None:
    sql(stack, AN_ENTRY, days=1_000, action="old")
    with stack.ledger.engine.connect() as connection:
        with connection.begin():
            connection.execute(text("SET LOCAL promptstack.audit_retention = '86400'"))
        with pytest.raises(DBAPIError, match="append only"), connection.begin():
            connection.execute(text("DELETE FROM audit_log"))


def test_old_entries_go_after_their_retention(stack: WorkerServices) -> None:
    record(stack)
    for days in (9, 11, 12):
        sql(stack, AN_ENTRY, days=days, action=f"old.{days}")

    def left(days: float) -> set[str]:
        cleanup = Cleanup(
            stack.ledger, jobs_seconds=0.0, attempts_seconds=0.0, audit_seconds=days * DAY
        )
        cleanup.run_once()
        return {entry.action for entry in stack.audit.get_many()}

    assert left(0) == {"sign_in", "old.9", "old.11", "old.12"}
    assert left(10) == {"sign_in", "old.9"}


def test_a_retention_of_less_than_a_day_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="AUDIT_RETENTION_SECONDS must be 0, or"):
        load_settings(_env_file=None, audit_retention_seconds=3_600)


def test_entries_are_found_by_who_what_and_when(stack: WorkerServices) -> None:
    record(stack, ADA, Action.SIGN_IN)
    record(stack, BOB, Action.KEY_CREATED, object=ObjectKind.KEY.of("k1"))
    record(stack, BOB, Action.KEY_REVOKED, object=ObjectKind.KEY.of("k1"))
    sql(stack, AN_ENTRY, days=3, action="keyboard.typed")

    def found(**wanted: Any) -> list[str]:
        return [entry.action for entry in stack.audit.get_many(**wanted)]

    assert found(actor="ada@EXAMPLE.org") == ["sign_in"]
    assert found(actor=str(ADA.user_id)) == ["sign_in"]
    assert found(actor=str(BOB.key_id)) == ["key.revoked", "key.created"]
    assert found(action="key") == ["key.revoked", "key.created"]
    assert found(action="key.created") == ["key.created"]
    assert found(action="ke") == found(action="%") == []
    assert found(object_id="k1") == ["key.revoked", "key.created"]
    with stack.ledger.transaction() as unit:
        now = unit.now()
    assert found(until=now.replace(year=now.year - 1)) == []
    assert len(found(since=now.replace(year=now.year - 1))) == 4
    with pytest.raises(InvalidInput, match="before"):
        found(since=now, until=now)


def test_pages_hold_each_entry_once(stack: WorkerServices) -> None:
    for number in range(7):
        record(stack, object=ObjectKind.JOB.of(str(number)))
    seen: list[str | None] = []
    after: UUID | None = None
    while page := stack.audit.get_many(limit=3, after=after):
        seen += [entry.object_id for entry in page]
        after = page[-1].id
    assert seen == [str(number) for number in reversed(range(7))]


def test_a_detail_has_only_fields_that_are_allowed(stack: WorkerServices) -> None:
    with pytest.raises(ValueError, match="no field password, prompt"):
        record(stack, detail={"prompt": "x", "password": "x", "name": "n"})
    assert stack.audit.get_many() == []


def test_long_values_are_cut_and_a_large_detail_is_left_out(stack: WorkerServices) -> None:
    """What it tells of has happened: the entry must be there."""
    entry = record(stack, detail={"name": "x" * 5_000, "reason": "a\x00b"})
    assert entry.detail == {"name": "x" * 197 + "...", "reason": "a\ufffdb"}
    many = {str(number): "\u20ac" * 300 for number in range(100)}
    assert record(stack, detail={"settings": many}).detail["left_out"] == ["settings"]
    nested: Any = "deep"
    for _ in range(2_000):
        nested = [nested]
    assert record(stack, detail={"rules": nested}).detail
    far = record(
        stack, Actor.unknown("a" * 1_000, "b" * 1_000), object=ObjectKind.FLAG.of("c" * 999)
    )
    assert {len(far.address), len(far.email or ""), len(far.object_id or "")} == {254}


def test_the_largest_detail_fits_into_the_ledger(stack: WorkerServices) -> None:
    """PostgreSQL writes a space after each comma and colon."""
    record(stack, detail={"scopes": [1] * 100, "settings": {str(n): [2] * 20 for n in range(80)}})
    assert "left_out" not in stack.audit.get_many()[0].detail
