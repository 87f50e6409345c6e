"""What a role that enqueues in SQL may do: call two functions for one user, and nothing else."""

from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
from psycopg2 import errors
from sqlalchemy import text

from promptstack.repositories.access_models import Role
from promptstack.repositories.audit import AuditFilter
from promptstack.repositories.models import Base
from promptstack.repositories.pages import PageQuery
from promptstack.services.access.users import UserView
from promptstack.services.audit.actor import Actor
from promptstack.services.errors import NotFound
from promptstack.tasks.worker_services import WorkerServices
from tests.sql_roles import connect, run

BY = Actor.command_line()
ENQUEUE = "SELECT promptstack.enqueue_generation('Hello.')"


def denied(connection: Any, statement: str) -> str:
    """What the database says to a statement that it doesn't allow."""
    with pytest.raises(errors.InsufficientPrivilege) as caught:
        run(connection, statement)
    connection.rollback()
    return str(caught.value)


def test_a_role_reads_changes_and_makes_nothing(connection: Any) -> None:
    for table in Base.metadata.tables:
        denied(connection, f"SELECT 1 FROM {table}")
        denied(connection, f"DELETE FROM {table}")
        denied(connection, f"INSERT INTO {table} DEFAULT VALUES")
        denied(connection, f"LOCK {table}")
    denied(connection, "CREATE TABLE mine (id integer)")
    denied(connection, "CREATE TABLE promptstack.mine (id integer)")
    denied(connection, "CREATE SCHEMA mine")


def test_a_role_calls_no_other_function(connection: Any) -> None:
    denied(connection, "SELECT promptstack.new_id()")
    denied(connection, "SELECT promptstack.refuse('a', 'b')")
    denied(
        connection,
        "SELECT promptstack.add_job('generation', 'generation', '{}', 1, NULL, NULL, NULL, NULL,"
        " NULL, NULL)",
    )


def test_a_role_is_told_nothing_of_others_by_an_idempotency_key(
    stack: WorkerServices, connection: Any
) -> None:
    bob = stack.users.create("bob@example.org")
    stack.jobs.enqueue_generation("Theirs.", user_id=bob.id, idempotency_key="one")
    given = "SELECT promptstack.enqueue_generation('Mine.', idempotency_key => 'one')"
    assert run(connection, given)


def test_a_role_acts_for_no_other_user(
    stack: WorkerServices, connection: Any, role: str, ada: UserView
) -> None:
    """Whatever role is set: who has signed in to the database decides."""
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(f'CREATE ROLE "{role}-other"; GRANT "{role}-other" TO "{role}"'))
    try:
        bob = stack.users.create("bob@example.org")
        stack.sql_roles.grant(f"{role}-other", bob.id, by=BY)
        run(connection, f'SET ROLE "{role}-other"')
        job_id = UUID(run(connection, ENQUEUE))
        connection.commit()
        assert stack.jobs.get(job_id, owner=ada.id).id == job_id
        denied(connection, f"INSERT INTO sql_roles VALUES ('{role}', '{bob.id}')")
        denied(connection, "SET SESSION AUTHORIZATION postgres")
    finally:
        connection.rollback()
        with stack.ledger.transaction() as unit:
            unit.session.execute(text(f'DROP OWNED BY "{role}-other"; DROP ROLE "{role}-other"'))


def test_a_role_cannot_put_its_own_names_before_ours(
    stack: WorkerServices, connection: Any, role: str, ada: UserView
) -> None:
    """Temporary tables, and functions and operators of its own schema, are not used."""
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(f'CREATE SCHEMA trap AUTHORIZATION "{role}"'))
    run(
        connection,
        """
        CREATE TEMP TABLE jobs (LIKE pg_class);
        CREATE TEMP TABLE users (id uuid, disabled_at timestamptz);
        CREATE TEMP TABLE sql_roles (role text, user_id uuid);
        CREATE FUNCTION trap.caught(text, text) RETURNS boolean LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'caught as %', current_user; END $$;
        CREATE OPERATOR trap.= (leftarg = text, rightarg = text, function = trap.caught);
        CREATE OPERATOR trap.!~ (leftarg = text, rightarg = text, function = trap.caught);
        """,
    )
    for name in ("now()", "length(text)", "cardinality(text[])", "pg_notify(text, text)"):
        run(
            connection,
            f"CREATE FUNCTION trap.{name} RETURNS integer LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE 'caught as %', current_user; END $$",
        )
    run(connection, "SET search_path = trap, pg_temp, pg_catalog, public")
    job_id = UUID(
        run(
            connection,
            "SELECT promptstack.enqueue_generation('Hello.', idempotency_key => 'a', "
            "max_retries => 1, expires_in => 5, provider => 'demo', tags => '{x}')",
        )
    )
    connection.commit()
    assert stack.jobs.get(job_id, owner=ada.id).id == job_id


def test_a_role_that_is_bound_to_nobody_is_told_what_to_do(
    stack: WorkerServices, connection: Any, role: str, ada: UserView
) -> None:
    with stack.ledger.transaction() as unit:
        unit.sql_roles.unbind(role)
    assert f'promptstack sql grant "{role}" --user EMAIL' in denied(connection, ENQUEUE)


def test_the_role_of_a_disabled_user_enqueues_nothing(
    stack: WorkerServices, connection: Any, ada: UserView
) -> None:
    stack.users.change(ada.id, disabled=True)
    assert "disabled" in denied(connection, ENQUEUE)


def test_a_revoked_role_may_not_even_call(
    stack: WorkerServices, connection: Any, role: str
) -> None:
    stack.sql_roles.revoke(role, by=BY)
    assert "permission denied" in denied(connection, ENQUEUE)
    assert stack.sql_roles.get_all() == []
    with pytest.raises(NotFound):
        stack.sql_roles.revoke(role, by=BY)


def test_a_role_is_bound_to_another_user_by_a_second_grant(
    stack: WorkerServices, connection: Any, role: str
) -> None:
    bob = stack.users.create("bob@example.org", role=Role.USER)
    stack.sql_roles.grant(role, bob.id, by=BY)
    [bound] = stack.sql_roles.get_all()
    assert (bound.role, bound.email) == (role, "bob@example.org")
    job_id = UUID(run(connection, ENQUEUE))
    connection.commit()
    assert stack.jobs.get(job_id, owner=bob.id).id == job_id
    with stack.ledger.transaction() as unit:
        found = unit.audit.find(AuditFilter(action="sql_role.granted"), PageQuery(10)).rows
    assert [entry.object_id for entry in found] == [role, role]


def test_a_role_that_is_not_there_is_no_role(stack: WorkerServices, ada: UserView) -> None:
    with pytest.raises(NotFound, match="CREATE ROLE nobody"):
        stack.sql_roles.grant("nobody", ada.id, by=BY)


def test_a_users_roles_go_with_the_user(stack: WorkerServices, role: str, ada: UserView) -> None:
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("DELETE FROM users WHERE id = :id"), {"id": ada.id})
    assert stack.sql_roles.get_all() == []
    with closing(connect(stack, role)) as connection:
        denied(connection, ENQUEUE)
