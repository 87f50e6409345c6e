"""Users are told by mail how their runs ended, once for each end, if they want to know."""

from collections.abc import Iterator
from typing import Any
from uuid import UUID, uuid4

import pytest

from promptstack.repositories.errors import LedgerUnavailable
from promptstack.repositories.run_models import Run, RunState
from promptstack.repositories.runs.runs import RunRepository
from promptstack.services.audit.actor import Actor
from promptstack.services.errors import BudgetReached, InvalidInput, NotFound
from promptstack.services.notifications.events import NotifyEvent
from promptstack.services.notifications.run_ends import event_of
from promptstack.services.notifications.service import NotificationView
from promptstack.services.runs.views import RunView
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve, sign_in
from tests.jobs import execute, sql
from tests.mail_server import MailServer, mail_server
from tests.mails import ROOT, add_user, with_mail
from tests.runs import work

EVERYTHING = list(NotifyEvent)
MARK = "marmalade"


@pytest.fixture
def server() -> Iterator[MailServer]:
    with mail_server() as served:
        yield served


@pytest.fixture
def mailing(stack: WorkerServices, server: MailServer) -> Iterator[WorkerServices]:
    with with_mail(stack, server) as opened:
        yield opened


def embed(stack: WorkerServices, user_id: UUID | None, **how: Any) -> RunView:
    texts = [f"{MARK} {n}" for n in range(3)]
    return stack.runs.embed(texts, provider="local", user_id=user_id, **how)


def told(stack: WorkerServices) -> list[NotificationView]:
    return stack.notifications.get_many()


@pytest.fixture
def ada(mailing: WorkerServices) -> UUID:
    return add_user(mailing, notify=[str(event) for event in EVERYTHING])


def test_a_user_is_told_that_a_run_is_completed(
    mailing: WorkerServices, server: MailServer, ada: UUID
) -> None:
    run = work(mailing, embed(mailing, ada, name="Reviews").id)
    assert run.state is RunState.COMPLETED
    [mail] = told(mailing)
    assert (mail.user_id, mail.event) == (ada, "run_ended")
    assert mail.subject == "Run Reviews is completed"
    execute(mailing, mail.id)
    text = server.accepted[0].mail.get_content()
    assert f"Run {run.id} of local/" in text
    assert "Succeeded: 3" in text
    assert MARK not in text, "what was asked stays in the ledger"


def test_a_run_without_a_user_and_one_of_who_chose_nothing_tell_nobody(
    mailing: WorkerServices,
) -> None:
    for user_id in (None, add_user(mailing, "quiet@example.org")):
        assert work(mailing, embed(mailing, user_id).id).state is RunState.COMPLETED
    failing = add_user(mailing, "failing@example.org", notify=["run_failed"])
    work(mailing, embed(mailing, failing).id)
    assert told(mailing) == []


def test_each_end_is_told_once(mailing: WorkerServices, ada: UUID) -> None:
    run = embed(mailing, ada)
    mailing.runs.cancel(run.id)
    mailing.run_lifecycle.run_once()
    assert [mail.subject for mail in told(mailing)] == ["Run is cancelled"]
    mailing.runs.retry(run.id)
    work(mailing, run.id)
    work(mailing, run.id)
    assert [mail.subject for mail in told(mailing)] == ["Run is completed", "Run is cancelled"]


def test_a_run_that_fails_tells_why(mailing: WorkerServices, server: MailServer, ada: UUID) -> None:
    run = embed(mailing, ada)
    mailing.run_lifecycle.end(run.id, RunState.FAILED, "QUOTA_EXHAUSTED", "The quota is spent.")
    [mail] = told(mailing)
    assert (mail.event, mail.subject) == ("run_failed", "Run is failed")
    execute(mailing, mail.id)
    assert "Reason: The quota is spent." in server.accepted[0].mail.get_content()


@pytest.mark.parametrize(
    ("state", "code", "event"),
    [
        (RunState.COMPLETED, None, "run_ended"),
        (RunState.COMPLETED, "INDEX_NOT_BUILT", "run_ended"),
        (RunState.CANCELLED, None, "run_ended"),
        (RunState.FAILED, "BUDGET_REACHED", "run_budget"),
        (RunState.FAILED, "KEY_BUDGET_REACHED", "run_budget"),
        (RunState.FAILED, "BAD_KEY", "run_failed"),
        (RunState.EXPIRED, "EXPIRED", "run_failed"),
    ],
)
def test_which_event_an_end_is(state: RunState, code: str | None, event: str) -> None:
    assert event_of(Run(state=state, error_code=code)) == event


def test_a_run_that_meets_its_budget_says_so(mailing: WorkerServices, ada: UUID) -> None:
    run = embed(mailing, ada)
    why = "The next call could cost more than is left."
    mailing.run_lifecycle.end(run.id, RunState.FAILED, BudgetReached.code, why)
    assert [mail.event for mail in told(mailing)] == ["run_budget"]


def test_the_mail_is_there_only_with_the_end(
    mailing: WorkerServices, ada: UUID, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = embed(mailing, ada)
    finish = RunRepository.finish

    def lost(self: RunRepository, *given: Any, **how: Any) -> Run | None:
        finish(self, *given, **how)
        raise LedgerUnavailable("The connection broke.")

    with monkeypatch.context() as broken:
        broken.setattr(RunRepository, "finish", lost)
        with pytest.raises(LedgerUnavailable):
            mailing.runs.cancel(run.id)
    assert told(mailing) == []
    assert mailing.runs.get(run.id).state is RunState.RUNNING
    mailing.runs.cancel(run.id)
    assert len(told(mailing)) == 1


def test_without_a_mail_server_nothing_is_added(stack: WorkerServices) -> None:
    user_id = add_user(stack, notify=[str(event) for event in EVERYTHING])
    assert work(stack, embed(stack, user_id).id).state is RunState.COMPLETED
    assert told(stack) == []


def test_who_is_disabled_is_told_nothing(mailing: WorkerServices, ada: UUID) -> None:
    sql(mailing, "UPDATE users SET disabled_at = now()")
    work(mailing, embed(mailing, ada).id)
    assert told(mailing) == []


# Choosing


def test_users_choose_what_they_are_told(mailing: WorkerServices) -> None:
    with serve(mailing) as client:
        path = "/api/v1/auth/me/events"
        client.headers.update(sign_in(mailing, "ada@example.org"))
        assert client.get(path).json() == {"events": []}
        chosen = client.put(path, json={"events": ["run_failed", "run_budget", "run_failed"]})
        assert chosen.json() == {"events": ["run_budget", "run_failed"]}
        assert client.get(path).json() == {"events": ["run_budget", "run_failed"]}
        for wrong in ({"events": ["all"]}, {"events": ["run_failed"] * 4}, {}, {"events": "x"}):
            problem(client.put(path, json=wrong), 422, "INVALID_INPUT")
        assert client.put(path, json={"events": []}).json() == {"events": []}
    assert mailing.audit.get_many(action="user.changed") == []


def test_others_choose_for_a_user_on_record(mailing: WorkerServices) -> None:
    user_id = add_user(mailing)
    mailing.notifications.choose_events(user_id, ["run_ended"], actor=Actor.command_line())
    assert mailing.notifications.get_events(user_id) == ["run_ended"]
    mailing.notifications.choose_events(user_id, ["run_ended"], actor=ROOT)
    [entry] = mailing.audit.get_many(action="user.changed")
    assert entry.object_id == str(user_id)
    assert entry.detail == {"changed": ["notify"], "before": [], "after": ["run_ended"]}
    with pytest.raises(InvalidInput, match="run_ended, run_failed, run_budget"):
        mailing.notifications.choose_events(user_id, ["everything"], actor=ROOT)
    with pytest.raises(NotFound):
        mailing.notifications.choose_events(uuid4(), [], actor=ROOT)
