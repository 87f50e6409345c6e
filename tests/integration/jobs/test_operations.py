"""Operations: what is done to all jobs that a filter matches, each step once."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import event, text
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.repositories.jobs.operations import OperationRepository
from promptstack.repositories.jobs.records import JobFilter
from promptstack.repositories.models import JobKind, JobState
from promptstack.repositories.operation_models import OperationAction
from promptstack.services.access.users import UserView
from promptstack.services.audit.actor import Actor
from promptstack.services.errors import NotFound, WrongState
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.jobs import execute, operate, retry_many

URL = "/api/v1/operations"


def add(stack: WorkerServices, count: int, state: JobState, **how: Any) -> list[UUID]:
    """Jobs in a state, with a reason where they have failed."""
    entries: Any = [{"prompt": "x", **how}] * count
    jobs = [job.id for job in stack.jobs.enqueue_many(entries)]
    ended = "now()" if state.is_final else "NULL"
    code = "'PROVIDER_TIMEOUT'" if state is JobState.FAILED else "NULL"
    sets = f"state = :state, finished_at = {ended}, error_code = {code}"
    with stack.ledger.transaction() as unit:
        change = text(f"UPDATE jobs SET {sets} WHERE id = ANY (:ids)")
        unit.session.execute(change, {"state": state, "ids": jobs})
    return jobs


def states(stack: WorkerServices, jobs: list[UUID]) -> set[JobState]:
    return {job.state for job in stack.jobs.get_all(jobs)}


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch, stack: WorkerServices) -> None:
    monkeypatch.setattr(stack._operation_work, "_jobs_a_step", 2)


@pytest.mark.usefixtures("small_steps")
def test_all_that_matches_is_changed_and_nothing_else(stack: WorkerServices) -> None:
    failed = add(stack, 5, JobState.FAILED, tags=["nightly"])
    others = add(stack, 2, JobState.FAILED) + add(stack, 1, JobState.SUCCEEDED, tags=["nightly"])
    done = operate(stack, OperationAction.RETRY, tag="nightly")
    assert (done.state, done.matched, done.done) == (JobState.SUCCEEDED, 5, 5)
    assert (done.skipped, done.failed, done.failures) == (0, 0, [])
    assert done.filter == {"state": "failed", "tag": "nightly"}
    assert states(stack, failed) == {JobState.QUEUED}
    assert states(stack, others) == {JobState.FAILED, JobState.SUCCEEDED}

    open_ = failed + add(stack, 3, JobState.RUNNING)
    done = operate(stack, OperationAction.CANCEL)
    # Neither itself nor an operation before it.
    assert (done.matched, done.done) == (len(open_), len(open_))
    assert states(stack, open_) == {JobState.CANCELLED}
    assert retry_many(stack, state=JobState.CANCELLED, since=done.created_at) == 0
    assert retry_many(stack, provider="nobody") == 0
    assert retry_many(stack, kind=JobKind.EMBEDDING) == 0
    assert retry_many(stack, state=JobState.CANCELLED, until=done.created_at) == len(open_)


def test_a_cancel_looks_at_open_jobs_only(stack: WorkerServices) -> None:
    """However many have ended: each of its steps would else read them all."""
    sent: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        sent.append((statement, parameters))

    columns = "id, kind, provider, model, request, request_hash, max_retries, expires_at, "
    columns += "state, finished_at"
    values = "gen_random_uuid(), 'generation', 'demo', 'demo-1', '{}', '', 0, now(), "
    values += "'succeeded', now()"
    with stack.ledger.transaction() as unit:
        unit.session.execute(
            text(f"INSERT INTO jobs ({columns}) SELECT {values} FROM generate_series(1, 20000)")
        )
        unit.session.execute(text("ANALYZE jobs"))
    event.listen(stack.ledger.engine, "before_cursor_execute", note)
    operate(stack, OperationAction.CANCEL)
    event.remove(stack.ledger.engine, "before_cursor_execute", note)
    steps = [one for one in sent if "FROM jobs" in one[0] and "jobs.state IN" in one[0]]
    assert len(steps) == 2  # the count, and the jobs of the step
    with stack.ledger.transaction() as unit:
        connection = unit.session.connection()
        for statement, parameters in steps:
            plan = str(list(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)))
            assert "Seq Scan" not in plan
            assert "jobs_open" in plan or "jobs_deadline" in plan


def test_a_state_that_it_cannot_change_is_refused(stack: WorkerServices) -> None:
    for action, state in (("retry", JobState.SUCCEEDED), ("cancel", JobState.FAILED)):
        with pytest.raises(WrongState, match=state):
            stack.operations.start(action, JobFilter(state=state))
    with pytest.raises(NotFound):
        stack.operations.get(uuid4())


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("dies", ["before the commit", "after it"])
def test_a_worker_that_dies_in_it_loses_and_doubles_no_step(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    add(stack, 7, JobState.FAILED)
    operation = stack.operations.start("retry", JobFilter(), actor=Actor.command_line())
    step = OperationRepository.step
    steps: list[Any] = []

    class Killed(BaseException):
        """As a SIGKILL: no code of the worker runs any more."""

    def killed(self: OperationRepository, *given: Any, **how: Any) -> Any:
        if len(steps) == 2 and dies == "after it":
            raise Killed
        steps.append(step(self, *given, **how))
        if len(steps) == 2 and dies == "before the commit":
            raise Killed
        return steps[-1]

    monkeypatch.setattr(OperationRepository, "step", killed)
    with pytest.raises(Killed):
        execute(stack, operation.id)
    assert stack.operations.get(operation.id).done == (4 if dies == "after it" else 2)
    monkeypatch.setattr(OperationRepository, "step", step)
    with stack.ledger.transaction() as unit:
        unit.steps.release(operation.id, 1)  # as the reconciler does when it misses the worker
    execute(stack, operation.id)
    done = stack.operations.get(operation.id)
    assert (done.state, done.matched, done.done, done.skipped) == (JobState.SUCCEEDED, 7, 7, 0)
    counts = [one.detail["count"] for one in stack.audit.get_many(action="job.retried_many")]
    assert counts == [1, 2, 2, 2]


@pytest.mark.usefixtures("small_steps")
def test_what_changed_meanwhile_is_skipped_and_what_came_later_is_left(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = add(stack, 5, JobState.QUEUED)
    step = OperationRepository.step
    later: list[UUID] = []

    def meanwhile(self: OperationRepository, *given: Any, **how: Any) -> Any:
        if not later:
            later.append(stack.jobs.enqueue_generation("later").id)
        found = step(self, *given, **how)
        if given[0].done == 2:
            with stack.ledger.transaction() as unit:
                unit.session.execute(
                    text("UPDATE jobs SET state = 'succeeded', finished_at = now() WHERE id = :id"),
                    {"id": jobs[-1]},
                )
        return found

    monkeypatch.setattr(OperationRepository, "step", meanwhile)
    done = operate(stack, OperationAction.CANCEL)
    assert (done.matched, done.done, done.skipped) == (5, 4, 1)
    assert states(stack, later) == {JobState.QUEUED}


@pytest.mark.usefixtures("small_steps")
def test_an_operation_that_is_cancelled_goes_no_further(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(stack, 5, JobState.FAILED)
    operation = stack.operations.start("retry", JobFilter())
    rebuild = stack.progress.rebuild

    def cancelling(ids: Any) -> Any:
        stack.jobs.cancel(operation.id)
        monkeypatch.setattr(stack.progress, "rebuild", rebuild)
        return rebuild(ids)

    monkeypatch.setattr(stack.progress, "rebuild", cancelling)
    execute(stack, operation.id)
    done = stack.operations.get(operation.id)
    assert (done.state, done.done, done.matched) == (JobState.CANCELLED, 2, 5)


def test_over_http_each_user_has_their_own(stack: WorkerServices, test_user: UserView) -> None:
    mine = add(stack, 2, JobState.FAILED, user_id=test_user.id)
    theirs = add(stack, 2, JobState.FAILED)
    with serve(stack, test_user.email) as client, serve(stack, "eve@example.org") as eve:
        body = {"action": "retry", "filter": {"error": "PROVIDER_TIMEOUT"}}
        key = {"Idempotency-Key": "once"}
        first, again = (client.post(URL, json=body, headers=key) for _ in range(2))
        assert (first.status_code, first.headers["retry-after"]) == (202, "1")
        assert first.headers["location"] == f"{URL}/{first.json()['id']}"
        assert first.json()["matched"] is None
        assert again.json()["id"] == first.json()["id"]
        execute(stack, UUID(first.json()["id"]))
        done = client.get(first.headers["location"]).json()
        assert (done["state"], done["matched"], done["done"]) == ("succeeded", 2, 2)
        assert states(stack, mine) == {JobState.QUEUED}
        assert states(stack, theirs) == {JobState.FAILED}
        assert [one["id"] for one in client.get(URL).json()["operations"]] == [done["id"]]
        assert eve.get(URL).json()["operations"] == []
        problem(eve.get(first.headers["location"]), 404, "NOT_FOUND")
        # It is no job of the user's among others, but one by its id.
        kinds = {job["kind"] for job in client.get("/api/v1/jobs").json()["jobs"]}
        assert kinds == {"generation"}
        _check_refusals(client)


def _check_refusals(client: TestClient) -> None:
    asked = {"action": "retry", "filter": {"owner": "all"}}
    problem(client.post(URL, json=asked), 403, "NOT_PERMITTED")
    for body in (
        {"action": "delete", "filter": {}},
        {"action": "retry"},
        {"action": "retry", "filter": {"user_id": str(uuid4())}},
        {"action": "retry", "filter": {"state": "gone"}},
    ):
        problem(client.post(URL, json=body), 422, "INVALID_INPUT")
    asked = {"action": "retry", "filter": {"state": "succeeded"}}
    problem(client.post(URL, json=asked), 409, "WRONG_STATE")


def test_the_commands_start_one(stack: WorkerServices) -> None:
    failed = add(stack, 2, JobState.FAILED)
    for command in ("retry", "cancel"):
        none = CliRunner().invoke(build(), ["jobs", command])
        assert none.exit_code == 2
        assert "--all" in none.output
    shown = CliRunner().invoke(
        build(), ["jobs", "retry", "--error", "PROVIDER_TIMEOUT", "--no-wait"]
    )
    assert "a worker does it" in shown.output, shown.output
    [operation] = stack.operations.get_page().rows
    execute(stack, operation.id)
    assert states(stack, failed) == {JobState.QUEUED}


def test_a_filter_in_the_query_is_refused(stack: WorkerServices) -> None:
    """It would not be applied, and the operation would change all jobs."""
    with serve(stack) as client:
        refused = client.post(URL, params={"tag": "x"}, json={"action": "cancel", "filter": {}})
        assert problem(refused, 422, "INVALID_INPUT")["errors"]
        assert client.get(URL).json()["operations"] == []
