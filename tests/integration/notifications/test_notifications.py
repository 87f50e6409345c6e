"""Notifications from their sender to the mail server: kept, told, tried again, never twice."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.jobs.records import ClaimStep
from promptstack.repositories.models import JobState
from promptstack.repositories.notification_models import Delivery
from promptstack.repositories.pages import PageQuery
from promptstack.services.errors import IdempotencyConflict, InvalidInput, NotFound, WrongState
from promptstack.services.notifications.errors import MailNotConfigured
from promptstack.services.notifications.service import MAX_MESSAGE, MAX_SUBJECT, RETRIES
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.integration.invariants.test_messages_carry_ids import everything_in
from tests.jobs import execute, sql
from tests.mail_server import MailServer, first, mail_server
from tests.mails import ROOT, add_user, send, shown, with_mail
from tests.processes import wait_until
from tests.reconcilers import Clock, reconciler_of

BODY = {"subject": "News", "message": "Hello."}


@pytest.fixture
def server() -> Iterator[MailServer]:
    with mail_server() as served:
        yield served


@pytest.fixture
def mailing(stack: WorkerServices, server: MailServer) -> Iterator[WorkerServices]:
    with with_mail(stack, server) as opened:
        yield opened


def deliveries(stack: WorkerServices, notification_id: UUID) -> list[Delivery]:
    with stack.ledger.transaction() as unit:
        return list(unit.deliveries.get_many(job_id=notification_id))


def retry_now(stack: WorkerServices, notification_id: UUID) -> None:
    """Let its wait be over."""
    sql(stack, "UPDATE jobs SET not_before = NULL WHERE id = :id", id=notification_id)


def test_a_list_of_notifications_reads_no_other_jobs(stack: WorkerServices) -> None:
    sent: list[tuple[str, Any]] = []

    def note(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> None:
        sent.append((statement, parameters))

    others = "INSERT INTO jobs (id, kind, provider, model, request, request_hash, max_retries, "
    others += "expires_at) SELECT gen_random_uuid(), 'generation', 'demo', 'demo-1', '{}', '', 0, "
    sql(stack, others + "now() FROM generate_series(1, 20000)")
    sql(stack, "ANALYZE jobs")
    with stack.ledger.transaction() as unit:
        event.listen(stack.ledger.engine, "before_cursor_execute", note)
        assert unit.deliveries.notifications(PageQuery(100)).rows == []
        event.remove(stack.ledger.engine, "before_cursor_execute", note)
        ((statement, parameters),) = [one for one in sent if "FROM jobs" in one[0]]
        rows = unit.session.connection().exec_driver_sql(f"EXPLAIN {statement}", parameters)
        assert "using jobs_notifications" in "\n".join(row[0] for row in rows)


def test_a_notification_is_a_mail(mailing: WorkerServices, server: MailServer) -> None:
    user_id = add_user(mailing, name="Ada L\u00f6velace")
    text = "Gr\u00fc\u00dfe!\n.\n..two\n" + "long " * 400 + "\nFrom here on\n"
    sent = send(mailing, user_id, text, subject="B\u00fccher \u5317\u4eac")
    assert execute(mailing, sent).state is JobState.SUCCEEDED

    [accepted] = server.accepted
    mail = accepted.mail
    assert (accepted.sender, accepted.recipient) == ("stack@example.org", "ada@example.org")
    assert mail["Subject"] == "B\u00fccher \u5317\u4eac"
    assert mail["From"] == "Prompt Stack <stack@example.org>"
    assert mail["To"] == "Ada L\u00f6velace <ada@example.org>"
    assert mail["Message-ID"] == f"<{sent}@example.org>"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Date"].datetime is not None
    assert mail.get_content_type() == "text/plain"
    assert mail.get_content().replace("\r\n", "\n") == text
    assert accepted.content.isascii()
    assert max(map(len, accepted.content.split(b"\r\n"))) <= 998, "as long as a line may be"

    view = shown(mailing, sent)
    assert (view.state, view.accepted, view.uncertain) == (JobState.SUCCEEDED, 1, 0)
    assert (view.recipient, view.subject) == ("ada@example.org", "B\u00fccher \u5317\u4eac")


def test_a_sender_is_on_record(mailing: WorkerServices) -> None:
    user_id = add_user(mailing)
    sent = send(mailing, user_id, "marmalade", subject="marmalade")
    [entry] = mailing.audit.get_many(action="notification")
    assert (entry.email, entry.object_id) == ("root@example.org", str(sent))
    assert entry.detail == {"to_user_id": str(user_id)}
    assert "marmalade" not in str(entry)


# Once


def test_the_same_key_is_the_same_notification(mailing: WorkerServices) -> None:
    user_id = add_user(mailing)

    def again(message: str = "x", actor: Any = ROOT) -> UUID:
        return mailing.notifications.send(
            user_id, "News", message, actor=actor, idempotency_key="k"
        )

    one = again()
    assert again() == one
    with pytest.raises(IdempotencyConflict, match=str(one)):
        again("other")
    assert again("other", replace(ROOT, user_id=uuid4())) != one, (
        "another sender has keys of their own"
    )
    assert len(mailing.audit.get_many(action="notification")) == 2


def test_a_second_message_sends_no_second_mail(mailing: WorkerServices, server: MailServer) -> None:
    sent = send(mailing, add_user(mailing))
    execute(mailing, sent)
    execute(mailing, sent)
    assert len(server.accepted) == 1


def test_a_mail_that_was_accepted_as_its_job_was_cancelled_is_not_sent_again(
    mailing: WorkerServices, server: MailServer
) -> None:
    sent = send(mailing, add_user(mailing))

    def cancel(_: int) -> None:
        mailing.jobs.cancel(sent)

    server.on_data = cancel
    assert execute(mailing, sent).state is JobState.CANCELLED
    assert shown(mailing, sent).accepted == 1
    mailing.jobs.retry(sent)
    assert execute(mailing, sent).state is JobState.SUCCEEDED
    assert len(server.accepted) == 1


# Tried again


@pytest.mark.parametrize("where", ["on_rcpt", "on_data", "on_mail"])
def test_what_is_refused_for_now_is_tried_again(
    mailing: WorkerServices, server: MailServer, where: str
) -> None:
    setattr(server, where, first("451 later", "450 later"))
    sent = send(mailing, add_user(mailing))
    for tries in (1, 2):
        assert execute(mailing, sent).state is JobState.QUEUED
        job = mailing.jobs.get(sent)
        assert (job.error_code, job.failures, job.attempt) == ("MAIL_POSTPONED", 0, tries)
        assert job.not_before is not None, "with a wait"
        retry_now(mailing, sent)
    assert execute(mailing, sent).state is JobState.SUCCEEDED
    assert len(server.accepted) == 1


@pytest.mark.parametrize("how", ["451 greylisted", "cut"])
def test_the_next_try_waits_as_long_as_mail_servers_want(
    stack: WorkerServices, server: MailServer, how: str
) -> None:
    server.on_data = lambda _: how
    with with_mail(stack, server, retry_seconds=600.0) as mailing:
        sent = send(mailing, add_user(mailing))
        assert execute(mailing, sent).state is JobState.QUEUED
        job = mailing.jobs.get(sent)
        assert job.not_before is not None
        assert job.not_before > job.created_at + timedelta(seconds=600)


def test_what_is_refused_for_good_fails_with_the_servers_words(
    mailing: WorkerServices, server: MailServer
) -> None:
    server.on_rcpt = first("550 5.1.1 marmalade is unknown")
    sent = send(mailing, add_user(mailing))
    assert execute(mailing, sent).state is JobState.FAILED
    view = shown(mailing, sent)
    assert (view.state, view.error_code) == (JobState.FAILED, "MAIL_REFUSED")
    assert "marmalade" not in str(view.error)
    [delivery] = deliveries(mailing, sent)
    assert (delivery.state, delivery.reply_code) == ("refused", 550)
    assert "marmalade is unknown" in str(delivery.reply)


def test_a_mail_server_that_is_away_uses_up_no_retry(
    mailing: WorkerServices, server: MailServer
) -> None:
    server.on_connection = lambda _: "cut"
    sent = send(mailing, add_user(mailing))
    for _ in range(RETRIES + 2):
        assert execute(mailing, sent).state is JobState.QUEUED
        retry_now(mailing, sent)
    assert mailing.jobs.get(sent).failures == 0
    server.on_connection = lambda _: None

    def is_sent() -> bool:
        retry_now(mailing, sent)
        return execute(mailing, sent).state is JobState.SUCCEEDED

    wait_until(is_sent, "the server to be tried again")
    assert len(server.accepted) == 1


def test_a_mail_is_tried_until_its_deadline(mailing: WorkerServices) -> None:
    job = mailing.jobs.get(send(mailing, add_user(mailing)))
    assert job.expires_at - job.created_at == timedelta(days=3)


# Cut off


@pytest.mark.parametrize("how", ["cut", "accept and cut"])
def test_a_mail_without_a_reply_is_sent_again_and_listed(
    mailing: WorkerServices, server: MailServer, how: str
) -> None:
    server.on_data = first(how)
    certain, sent = send(mailing, add_user(mailing)), send(mailing, add_user(mailing, "b@x.org"))
    assert execute(mailing, sent).state is JobState.QUEUED
    assert mailing.jobs.get(sent).error_code == "MAIL_ACCEPTANCE_UNKNOWN"
    retry_now(mailing, sent)
    assert execute(mailing, sent).state is JobState.SUCCEEDED
    assert execute(mailing, certain).state is JobState.SUCCEEDED

    assert [one.id for one in mailing.notifications.get_many(is_uncertain=True)] == [sent]
    view = shown(mailing, sent)
    assert (view.accepted, view.uncertain) == (1, 1)
    assert server.ids.count(view.message_id) == (2 if how == "accept and cut" else 1)
    copies = {one.content for one in server.accepted if one.message_id == view.message_id}
    assert len(copies) == 1, "a second copy is the same to the byte"


def test_a_mail_whose_worker_died_is_sent_again_and_listed(
    mailing: WorkerServices, server: MailServer
) -> None:
    sent = send(mailing, add_user(mailing))
    with mailing.ledger.transaction() as unit:
        claim = unit.steps.claim_batch([ClaimStep(sent)], uuid4())[sent]
    with mailing.ledger.transaction() as unit:
        unit.deliveries.begin(sent, claim.attempt, "ada@example.org")
    assert mailing.notifications.get_many(is_uncertain=True) == [], "it is under way"
    reconciler_of(mailing, Clock()).run_once()
    assert [one.id for one in mailing.notifications.get_many(is_uncertain=True)] == [sent]
    retry_now(mailing, sent)
    assert execute(mailing, sent).state is JobState.SUCCEEDED
    assert [one.state for one in deliveries(mailing, sent)] == ["unknown", "accepted"]
    assert [one.id for one in mailing.notifications.get_many(is_uncertain=True)] == [sent]
    assert len(server.accepted) == 1


def test_a_server_that_never_replies_gets_a_mail_only_so_often(
    mailing: WorkerServices, server: MailServer
) -> None:
    """Each time, its reader may get another copy."""
    server.on_data = lambda _: "accept and cut"
    sent = send(mailing, add_user(mailing))
    while execute(mailing, sent).state is JobState.QUEUED:
        retry_now(mailing, sent)
    job = mailing.jobs.get(sent)
    assert (job.state, job.error_code) == (JobState.FAILED, "MAIL_ACCEPTANCE_UNKNOWN")
    assert len(server.accepted) == RETRIES + 1
    assert shown(mailing, sent).uncertain == RETRIES + 1


def test_no_text_leaves_if_it_can_not_be_put_on_record(
    mailing: WorkerServices, server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = send(mailing, add_user(mailing))
    mailing.active_jobs.stop()  # else it would wait for the ledger

    def away(*_: object) -> int:
        raise TransientLedgerError("It is away.")

    monkeypatch.setattr("promptstack.repositories.notifications.DeliveryRepository.begin", away)
    execute(mailing, sent)
    assert server.texts == 0


# Content


def test_the_text_is_in_the_ledger_alone(
    mailing: WorkerServices, server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a message, Redis, a log, an audit entry, or what Celery and monitors are told."""
    caplog.set_level(logging.DEBUG)
    mark = "marmalade"
    server.on_data = first(f"451 {mark}", f"554 {mark}")
    told: list[object] = []
    for name in ("kept", "refused"):
        user_id = add_user(mailing, f"{name}@example.org")
        sent = mailing.notifications.send(
            user_id, mark, mark, actor=ROOT, idempotency_key=f"{mark}-{name}"
        )
        told.append(everything_in(mailing.redis_url))
        told.append(execute(mailing, sent, told.append))
        told.append(mailing.jobs.get(sent))
        retry_now(mailing, sent)
    told.append(mailing.audit.get_many())
    # The server of this test logs what it hears, in this process.
    logged = [one.getMessage() for one in caplog.records if not one.name.startswith("mail")]
    seen = f"{told} {logged} {everything_in(mailing.redis_url)}"
    assert "MAIL_POSTPONED" in seen
    assert "MAIL_REFUSED" in seen
    assert mark not in seen


def test_a_worker_that_is_about_to_stop_begins_no_mail(
    mailing: WorkerServices, server: MailServer
) -> None:
    sent = send(mailing, add_user(mailing))
    mailing.active_jobs.let_none_begin()
    execute(mailing, sent)
    job = mailing.jobs.get(sent)
    assert (job.state, job.failures, job.not_before) == (JobState.QUEUED, 0, None)
    assert server.connections == 0


# Users


def test_who_is_disabled_gets_no_mail(mailing: WorkerServices, server: MailServer) -> None:
    user_id = add_user(mailing)
    sent = send(mailing, user_id)
    with mailing.ledger.transaction() as unit:
        user = unit.users.get(user_id)
        assert user is not None
        unit.users.update(user, disabled_at=unit.now())
    with pytest.raises(WrongState, match="disabled"):
        send(mailing, user_id)
    assert execute(mailing, sent).state is JobState.FAILED
    assert server.connections == 0


def test_an_unknown_user_gets_no_mail(mailing: WorkerServices) -> None:
    with pytest.raises(NotFound):
        send(mailing, uuid4())


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("News\r\nBcc: eve@example.org", "x"),
        ("News\nX", "x"),
        ("a\x00b", "x"),
        ("\u202enews", "x"),
        ("", "x"),
        (" ", "x"),
        ("x", " \n"),
        ("x", "a\x00b"),
        ("x", "\ud800"),
        ("x" * (MAX_SUBJECT + 1), "x"),
        ("x", "x" * (MAX_MESSAGE + 1)),
    ],
)
def test_what_no_mail_may_have_is_refused(
    mailing: WorkerServices, subject: str, message: str
) -> None:
    with pytest.raises(InvalidInput):
        send(mailing, add_user(mailing), message, subject=subject)
    assert mailing.notifications.get_many() == []


# Without a mail server


def test_without_a_mail_server_nothing_is_accepted(stack: WorkerServices) -> None:
    with pytest.raises(MailNotConfigured, match="SMTP_URL and MAIL_FROM"):
        send(stack, add_user(stack))
    with serve(stack, "root@example.org", is_admin=True) as client:
        body = {**BODY, "user_id": str(uuid4())}
        response = client.post("/api/v1/send-notification", json=body)
        problem(response, 503, "MAIL_NOT_CONFIGURED")


def test_a_worker_without_a_mail_server_leaves_mails_for_one_that_has_it(
    stack: WorkerServices, mailing: WorkerServices
) -> None:
    sent = send(mailing, add_user(mailing))
    assert execute(stack, sent).state is JobState.QUEUED
    assert stack.jobs.get(sent).failures == 0
    retry_now(stack, sent)
    assert execute(mailing, sent).state is JobState.SUCCEEDED


# Over HTTP


def test_an_administrator_sends_and_lists(mailing: WorkerServices) -> None:
    user_id = str(add_user(mailing, "bob@example.org"))
    with serve(mailing, "root@example.org", is_admin=True) as client:

        def post(key: str = "", **body: object) -> Any:
            headers = {"Idempotency-Key": key} if key else {}
            return client.post("/api/v1/send-notification", json={**BODY, **body}, headers=headers)

        accepted = post("k", user_id=user_id)
        assert accepted.status_code == 202, accepted.text
        sent = accepted.json()["id"]
        assert post("k", user_id=user_id).json()["id"] == sent
        problem(post("k", user_id=user_id, message="x"), 409, "IDEMPOTENCY_CONFLICT")
        problem(post("x" * 201, user_id=user_id), 422, "INVALID_INPUT")
        problem(post(user_id=str(uuid4())), 404, "NOT_FOUND")
        for wrong in (
            {"user_id": "x"},
            {"user_id": user_id, "subject": "a\nb"},
            {"user_id": user_id, "subject": "x" * (MAX_SUBJECT + 1)},
            {"user_id": user_id, "message": "x" * (MAX_MESSAGE + 1)},
            {"user_id": user_id, "message": ""},
            {"user_id": user_id, "cc": "eve@example.org"},
        ):
            problem(post(**wrong), 422, "INVALID_INPUT")
        execute(mailing, UUID(sent))
        post(user_id=user_id)
        page = client.get("/api/v1/notifications", params={"limit": 1}).json()
        assert page["notifications"][0]["state"] == "queued"
        after = client.get("/api/v1/notifications", params={"after": page["after"]}).json()
        assert [one["id"] for one in after["notifications"]] == [sent]
        problem(client.get("/api/v1/notifications?limit=501"), 422, "INVALID_INPUT")
        assert client.get("/api/v1/notifications?uncertain=true").json()["notifications"] == []
        assert client.get(f"/api/v1/jobs/{sent}").json()["kind"] == "notification"


def test_others_neither_send_nor_list(mailing: WorkerServices) -> None:
    user_id = str(add_user(mailing, "bob@example.org"))
    sent = send(mailing, UUID(user_id))
    with serve(mailing) as client:
        body = {**BODY, "user_id": user_id}
        problem(client.post("/api/v1/send-notification", json=body), 403, "NOT_PERMITTED")
        problem(client.get("/api/v1/notifications"), 403, "NOT_PERMITTED")
        problem(client.get(f"/api/v1/jobs/{sent}"), 404, "NOT_FOUND")
