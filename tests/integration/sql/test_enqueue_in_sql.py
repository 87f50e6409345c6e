"""Jobs enqueued in SQL: what the functions accept, refuse and store, and what workers make of it.

The role's own connections run plain SQL: nothing of ours is between them and the functions.
"""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import UUID

import pytest
from psycopg2 import errors
from sqlalchemy import text

from promptstack.config.names import Queue
from promptstack.repositories.errors import LedgerConflict
from promptstack.repositories.models import JobKind, JobState
from promptstack.services.access.users import UserView
from promptstack.services.errors import NotFound
from promptstack.services.jobs import intake
from promptstack.services.jobs.views import WaitReason
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import execute
from tests.processes import wait_until
from tests.sql_roles import connect, run


def enqueue(connection: Any, arguments: str, *values: Any, function: str = "generation") -> UUID:
    job_id = UUID(run(connection, f"SELECT promptstack.enqueue_{function}({arguments})", *values))
    connection.commit()
    return job_id


def refused(connection: Any, arguments: str, *values: Any, function: str = "generation") -> str:
    """What the function says, with its hint; nothing is stored."""
    with pytest.raises(errors.InvalidParameterValue) as caught:
        enqueue(connection, arguments, *values, function=function)
    connection.rollback()
    diagnosis = caught.value.diag
    assert diagnosis.message_hint
    return str(diagnosis.message_primary)


def test_it_is_a_job_once_its_transaction_is_committed(
    stack: WorkerServices, connection: Any, ada: UserView, fake_llm: FakeProvider
) -> None:
    given = "'Say hello.', provider => 'fake', tags => '{greeting}'"
    job_id = UUID(run(connection, f"SELECT promptstack.enqueue_generation({given})"))
    with pytest.raises(NotFound):
        stack.jobs.get(job_id)
    connection.commit()

    job = stack.jobs.get(job_id, owner=ada.id)
    assert (job.kind, job.state) == (JobKind.GENERATION, JobState.QUEUED)

    assert execute(stack, job_id).state is JobState.SUCCEEDED
    assert stack.jobs.get(job_id).result["text"] == "You said: Say hello."  # type: ignore[index]
    assert run(connection, "SELECT 1") == 1


def test_a_transaction_that_is_rolled_back_leaves_no_job(
    stack: WorkerServices, connection: Any
) -> None:
    run(connection, "SELECT promptstack.enqueue_generation('Hello.')")
    connection.rollback()
    assert stack.jobs.get_many() == []


def test_the_worker_fills_in_what_was_left_out(
    stack: WorkerServices, connection: Any, ada: UserView, fake_llm: FakeProvider
) -> None:
    stack.users.change(ada.id, preferred_provider="fake")
    job_id = enqueue(connection, "'Hello.'")
    execute(stack, job_id)
    job = stack.jobs.get(job_id)
    assert (job.state, job.provider) == (JobState.SUCCEEDED, "fake")
    assert job.model == "fake-1"
    assert job.max_retries == stack.settings.job_max_retries
    lifetime = (job.expires_at - job.created_at).total_seconds()
    assert lifetime == pytest.approx(stack.settings.job_expires_seconds)


def test_what_was_said_holds(
    stack: WorkerServices, connection: Any, fake_llm: FakeProvider
) -> None:
    job_id = enqueue(
        connection,
        "messages => %s, parameters => %s, provider => 'fake', max_retries => 7, "
        "expires_in => 500.5, bulk => true",
        '[{"role": "user", "content": "Hello."}]',
        '{"temperature": 0.5, "max_tokens": 10, "stop": ["x"]}',
    )
    execute(stack, job_id)
    job = stack.jobs.get(job_id)
    assert job.state is JobState.SUCCEEDED, job.error
    assert job.max_retries == 7
    assert (job.expires_at - job.created_at).total_seconds() == pytest.approx(500.5)
    with stack.ledger.transaction() as unit:
        row = unit.session.execute(
            text("SELECT queue, request, is_checked FROM jobs WHERE id = :id"), {"id": job_id}
        ).one()
    assert (row.queue, row.is_checked) == ("generation-bulk", True)
    assert row.request["temperature"] == 0.5
    assert row.request["stop"] == ["x"]


JUDGED = [
    ("'Hi.', provider => 'nobody'", "nobody"),
    ("'Hi.', model => 'none'", "none"),
    ("""'Hi.', parameters => '{"temprature": 1}'""", "temprature"),
    ("""'Hi.', parameters => '{"user_id": "1"}'""", "user_id"),
    ("""'Hi.', parameters => '{"key_limits": 1}'""", "key_limits"),
    ("""'Hi.', parameters => '{"temperature": 9}'""", "temperature"),
    ("messages => '[1]'", "messages"),
    ("""'Hi.', fallbacks => '[{"a": 1}]'""", "a"),
]


def test_what_only_python_can_judge_fails_before_any_call(
    stack: WorkerServices, connection: Any
) -> None:
    for arguments, says in JUDGED:
        job_id = enqueue(connection, arguments)
        execute(stack, job_id)
        job = stack.jobs.get(job_id)
        assert job.state is JobState.FAILED
        assert job.error_code in {"INVALID_INPUT", "UNKNOWN_PROVIDER", "UNKNOWN_MODEL"}
        assert says in str(job.error)
        assert stack.jobs.get_attempts(job_id) == []


DEEP = "(repeat('[', 3000) || repeat(']', 3000))::jsonb"
UNREADABLE = ("'{\"seed\": 1e5000}'", f"jsonb_build_object('options', {DEEP})")
"""What jsonb holds and Python can't read."""


def test_a_request_that_python_cannot_read_fails_with_the_reason(
    stack: WorkerServices, connection: Any
) -> None:
    """Also one that was enqueued before SQL refused it, and no other job is held up by it."""
    for request in UNREADABLE:
        job_id = enqueue(connection, "'Hello.'")
        with stack.ledger.transaction() as unit:
            unreadable = f"UPDATE jobs SET request = request || {request} WHERE id = :id"
            unit.session.connection().exec_driver_sql(
                unreadable.replace(":id", "%(id)s"), {"id": job_id}
            )
        execute(stack, job_id)
        job = stack.jobs.get(job_id)
        assert (job.state, job.error_code) == (JobState.FAILED, "INVALID_INPUT")
        assert "can't be read" in str(job.error)
        assert stack.jobs.get_attempts(job_id) == []


def test_deep_requests_that_python_can_read_fail_with_the_reason(
    stack: WorkerServices, connection: Any
) -> None:
    nested = """(repeat('{"a":', 90) || '1' || repeat('}', 90))::jsonb"""
    job_id = enqueue(connection, f"'Hi.', parameters => jsonb_build_object('options', {nested})")
    execute(stack, job_id)
    assert "50 levels" in str(stack.jobs.get(job_id).error)


def test_the_size_of_a_stored_value_is_that_of_its_text(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE given (messages jsonb)")
        cursor.execute(
            "INSERT INTO given SELECT jsonb_build_array("
            "jsonb_build_object('role', 'user', 'content', repeat('a', 64000000)))"
        )
        with pytest.raises(errors.InvalidParameterValue, match="at most 64000000"):
            cursor.execute("SELECT promptstack.enqueue_generation(messages => messages) FROM given")
    connection.rollback()


def test_tags_are_a_list_whatever_its_first_number(
    stack: WorkerServices, connection: Any, ada: UserView
) -> None:
    job_id = enqueue(connection, "'Hi.', tags => '[5:6]={a,b}'")
    assert stack.jobs.get(job_id, owner=ada.id).tags == ["a", "b"]


def test_a_stream_that_is_no_truth_value_is_read_as_none(
    stack: WorkerServices, connection: Any
) -> None:
    job_id = enqueue(connection, """'Hi.', parameters => '{"stream": {"a": 1}}'""")
    with stack.ledger.transaction() as unit:
        assert not unit.jobs.is_streamed(job_id)


REFUSED = [
    ("", "either prompt or messages"),
    ("'Hi.', messages => '[1]'", "either prompt or messages"),
    ("E' \\n '", "prompt is empty"),
    ("messages => '{}'", "must be a list"),
    ("messages => '[]'", "must be a list"),
    ("'Hi.', parameters => '[]'", "parameters must be"),
    ("'Hi.', fallbacks => '{}'", "fallbacks must be"),
    ("'Hi.', provider => ''", "provider must have"),
    ("'Hi.', model => repeat('m', 201)", "model must have"),
    ("'Hi.', model => E'a\\nb'", "control character"),
    ("'Hi.', idempotency_key => ''", "idempotency_key must"),
    ("'Hi.', max_retries => 101", "max_retries must"),
    ("'Hi.', max_retries => -1", "max_retries must"),
    ("'Hi.', expires_in => 0", "expires_in must"),
    ("'Hi.', expires_in => 'NaN'", "expires_in must"),
    ("'Hi.', expires_in => 'Infinity'", "expires_in must"),
    ("'Hi.', expires_in => 31622401", "expires_in must"),
    ("'Hi.', tags => array_fill('x'::text, '{17}')", "16 tags"),
    ("'Hi.', tags => ARRAY[repeat('x', 65)]", "A tag must"),
    ("'Hi.', tags => '{NULL}'", "A tag is NULL"),
    ("'Hi.', tags => ARRAY[['a', 'b'], ['c', 'd']]", "several dimensions"),
    ("repeat('x', 64000001)", "64000000"),
    ("""'Hi.', parameters => '{"seed": 1e5000}'""", "beyond 1e308"),
    ("""'Hi.', fallbacks => '[{"options": {"a": -1e309}}]'""", "beyond 1e308"),
    ("'Hi.', parameters => jsonb_build_object('options', {deep})", "100 levels"),
    ("messages => {deep}", "100 levels"),
]


def test_what_sql_can_judge_is_refused_with_a_hint(stack: WorkerServices, connection: Any) -> None:
    for arguments, says in REFUSED:
        assert says in refused(connection, arguments.replace("{deep}", DEEP))
    for arguments, says in REFUSED_DOCUMENTS:
        assert says in refused(connection, arguments, function="embedding")
    assert stack.jobs.get_many() == []


REFUSED_DOCUMENTS = [
    ("' ', 'a'", "nothing to embed"),
    ("NULL, 'a'", "nothing to embed"),
    ("'Text.', ''", "source must"),
    ("'Text.', repeat('x', 2001)", "source must"),
    ("'Text.', E'a\\tb'", "control character"),
    ("'Text.', 'a', chunk_tokens => 15", "chunk_tokens"),
    ("'Text.', 'a', collection => ''", "collection must"),
]


def test_a_document_is_stored_when_it_was_checked(
    stack: WorkerServices, connection: Any, ada: UserView, fake_llm: FakeProvider
) -> None:
    job_id = enqueue(
        connection, "'A text.', 'a.txt', 'fake', chunk_tokens => 100", function="embedding"
    )
    assert execute(stack, job_id).state is JobState.SUCCEEDED, stack.jobs.get(job_id).error
    assert fake_llm.embedded == ["A text."]
    with stack.ledger.transaction() as unit:
        [document] = unit.documents.get_many()
    assert (document.user_id, document.source, document.text) == (ada.id, "a.txt", "A text.")


def test_of_two_texts_of_a_source_the_newer_one_stays(
    stack: WorkerServices, connection: Any, fake_llm: FakeProvider
) -> None:
    both = [
        enqueue(connection, "%s, 'a.txt', 'fake'", each, function="embedding")
        for each in ("The old text.", "The new text.")
    ]
    for job_id in reversed(both):
        assert execute(stack, job_id).state is JobState.SUCCEEDED
    with stack.ledger.transaction() as unit:
        [document] = unit.documents.get_many()
    assert document.text == "The new text."


def test_a_known_key_is_the_job_that_is_there(
    stack: WorkerServices, connection: Any, fake_llm: FakeProvider
) -> None:
    given = "'Hello.', provider => 'fake', idempotency_key => 'one'"
    job_id = enqueue(connection, given)
    assert enqueue(connection, given) == job_id
    execute(stack, job_id)
    assert enqueue(connection, given + ", max_retries => 9") == job_id  # as over HTTP
    with pytest.raises(errors.UniqueViolation, match=str(job_id)) as caught:
        enqueue(connection, "'Goodbye.', idempotency_key => 'one'")
    assert caught.value.diag.message_hint == "Send a new key for a new request."


def test_the_key_of_a_transaction_that_is_open_is_waited_for(
    stack: WorkerServices, connection: Any, role: str
) -> None:
    given = "SELECT promptstack.enqueue_generation('Hello.', idempotency_key => 'one')"
    first = run(connection, given)
    with closing(connect(stack, role)) as other, ThreadPoolExecutor(1) as thread:
        waits = thread.submit(run, other, given)
        connection.commit()
        assert waits.result(timeout=60) == first
        other.commit()
    assert len(stack.jobs.get_many()) == 1


def test_only_a_job_of_the_same_key_waits_for_a_transaction_that_stays_open(
    stack: WorkerServices, connection: Any, ada: UserView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "LOCK_SECONDS", 600)
    run(connection, "SELECT promptstack.enqueue_generation('Hello.', idempotency_key => 'one')")
    with ThreadPoolExecutor(5) as threads:
        same = [
            threads.submit(
                stack.jobs.enqueue_generation, "Hi.", idempotency_key="one", user_id=ada.id
            )
            for _ in range(2)
        ]
        try:
            wait_until(lambda: waiting_for_locks(stack) == 2, "both wait")
            for number in range(3):
                other = threads.submit(stack.jobs.enqueue_generation, f"{number}")
                assert other.result(timeout=60).state is JobState.QUEUED
            assert not any(one.done() for one in same)
        finally:
            connection.rollback()
        assert same[0].result(timeout=60).id == same[1].result(timeout=60).id


def test_a_job_waits_a_moment_only_for_a_transaction_that_stays_open(
    stack: WorkerServices, connection: Any, ada: UserView, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "LOCK_SECONDS", 0.1)
    run(connection, "SELECT promptstack.enqueue_generation('Hello.', idempotency_key => 'one')")
    mine: Any = {"idempotency_key": "one", "user_id": ada.id}
    with pytest.raises(LedgerConflict, match="same idempotency key"):
        stack.jobs.enqueue_generation("Hi.", **mine)
    with pytest.raises(LedgerConflict, match="same idempotency key"):
        stack.jobs.enqueue_embedding("Hi.", source="a.txt", **mine)
    with pytest.raises(LedgerConflict, match="same idempotency key"):
        stack.jobs.enqueue_many([mine | {"prompt": "Hi."}, {"prompt": "Hi."}])
    connection.rollback()
    assert stack.jobs.enqueue_generation("Hi.", **mine).state is JobState.QUEUED


def waiting_for_locks(stack: WorkerServices) -> int:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    with stack.ledger.transaction() as unit:
        count: int = unit.session.execute(
            text(f"{waiting} AND wait_event_type = 'Lock'")
        ).scalar_one()
    return count


def test_a_failed_job_is_checked_again_when_it_is_retried(
    stack: WorkerServices, connection: Any, fake_llm: FakeProvider
) -> None:
    job_id = enqueue(connection, "'Hello.', provider => 'later'")
    execute(stack, job_id)
    assert stack.jobs.get(job_id).error_code == "UNKNOWN_PROVIDER"
    with stack.ledger.transaction() as unit:  # its deadline is counted anew
        unit.session.execute(text("UPDATE jobs SET created_at = now() - interval '30 days'"))
    stack.factory.register("later", fake_llm.service)
    stack.jobs.retry(job_id)
    assert execute(stack, job_id).state is JobState.SUCCEEDED


def test_a_bulk_job_waits_for_its_users_turn(stack: WorkerServices, connection: Any) -> None:
    enqueue(connection, "'Hello.', bulk => true")
    assert stack.outbox.publish() == 0
    assert stack.publisher.waiting(Queue.GENERATION_BULK) == 1


def test_why_it_waits_is_said_before_a_provider_is_chosen(
    stack: WorkerServices, connection: Any
) -> None:
    stack.heartbeat.beat()  # a worker is alive, which has no provider's key
    waits = stack.jobs.get(enqueue(connection, "'Hello.'")).waits
    assert waits is not None
    assert waits.reason is WaitReason.QUEUE


def test_its_message_leaves_at_the_next_look(stack: WorkerServices, connection: Any) -> None:
    enqueue(connection, "'Hello.'")
    assert stack.outbox.publish() == 1
    assert stack.outbox.publish() == 0
