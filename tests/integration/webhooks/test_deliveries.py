"""Events on their way: signed, tried again, never lost, and nobody waits for one that hangs."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest
from openai import OpenAI
from pydantic import SecretStr
from sqlalchemy import text
from standardwebhooks.webhooks import Webhook as StandardWebhook
from standardwebhooks.webhooks import WebhookVerificationError
from svix.webhooks import Webhook as SvixWebhook

from promptstack.repositories.webhook_models import DeliveryState
from promptstack.repositories.webhooks.sending import LOOKED_AT, Room
from promptstack.services.errors import NotFound, WrongState
from promptstack.services.webhooks.secrets import SecretBox
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider, employ
from tests.integration.invariants.test_messages_carry_ids import everything_in
from tests.jobs import NO_REDIS, another, generate, run, sql, two_users
from tests.mail_server import mail_server
from tests.mails import add_user, with_mail
from tests.processes import wait_until
from tests.webhooks import (
    HANG,
    TAKE,
    Event,
    Receiver,
    deliveries,
    make_due,
    receiver,
    send_all,
    send_due,
)

LOCAL = {
    "webhook_allowed_hosts": ["127.0.0.1"],
    "webhook_retry_seconds": [0.0, 0.05, 0.05, 0.05],
    "webhook_timeout_seconds": 5.0,
}


def by_svix(event: Event, secret: str) -> dict[str, Any]:
    SvixWebhook(secret).verify(event.raw, event.headers)
    return event.body


VERIFIERS: dict[str, Callable[[Event, str], Any]] = {
    "standardwebhooks": lambda event, secret: StandardWebhook(secret).verify(
        event.raw, event.headers
    ),
    "svix": by_svix,
    "openai": lambda event, secret: OpenAI(api_key="none").webhooks.unwrap(
        event.raw, event.headers, secret=secret
    ),
}


@pytest.fixture
def served() -> Iterator[Receiver]:
    with receiver() as opened:
        yield opened


@pytest.fixture
def sending(stack: WorkerServices) -> Iterator[WorkerServices]:
    """A worker that may send to this machine."""
    with another(stack, **LOCAL) as opened:
        employ(opened, FakeProvider())
        yield opened


def end_a_job(stack: WorkerServices, prompt: str = "Hello.", **how: Any) -> UUID:
    job = generate(stack, prompt, **how)
    run(stack, job)
    return job.id


def test_an_event_is_signed_and_says_which_job_has_ended(
    sending: WorkerServices, served: Receiver
) -> None:
    made = sending.webhooks.create(f"{served.url}?token=t")
    job_id = end_a_job(sending)
    before = time.time()
    send_due(sending)
    [event] = served.got
    assert event.path == "/hooks?token=t"
    assert event.headers["content-type"] == "application/json"
    assert event.headers["user-agent"].startswith("PromptStack")
    assert abs(int(event.headers["webhook-timestamp"]) - before) < 60
    assert event.body == {
        "id": event.id,
        "object": "event",
        "created_at": event.body["created_at"],
        "type": "response.completed",
        "data": {"id": str(job_id)},
    }
    assert abs(event.body["created_at"] - before) < 60
    [delivery] = deliveries(sending)
    assert event.id == f"evt_{delivery.event_id.hex}"
    assert (delivery.state, delivery.due_at) == ("delivered", None)
    [attempt] = delivery.attempts
    assert (attempt["status"], attempt["error"]) == (204, None)
    assert made.secret.startswith("whsec_")


def test_a_response_of_openais_api_has_its_name_there(
    sending: WorkerServices, served: Receiver
) -> None:
    sending.webhooks.create(served.url)
    made = sending.responses.create({"model": "fake/fake-1"}, "Hello.", user_id=None)
    run(sending, made.job)
    send_due(sending)
    [event] = served.got
    assert event.body["type"] == "response.completed"
    assert event.body["data"] == {"id": made.body()["id"]} == {"id": f"resp_{made.id.hex}"}


@pytest.mark.parametrize("name", VERIFIERS, ids=list(VERIFIERS))
def test_three_verifiers_accept_it(sending: WorkerServices, served: Receiver, name: str) -> None:
    secret = sending.webhooks.create(served.url).secret
    job_id = end_a_job(sending)
    send_due(sending)
    [event] = served.got
    told = VERIFIERS[name](event, secret)
    data = told["data"]["id"] if isinstance(told, dict) else told.data.id
    kind = told["type"] if isinstance(told, dict) else told.type
    assert (kind, data) == ("response.completed", str(job_id))
    other = sending.webhooks.create(f"{served.url}/other").secret
    with pytest.raises(Exception, match="ignature"):
        VERIFIERS[name](event, other)


def test_openai_knows_the_class_of_the_event(sending: WorkerServices, served: Receiver) -> None:
    secret = sending.webhooks.create(served.url).secret
    sending.jobs.cancel(generate(sending).id)
    send_due(sending)
    told = VERIFIERS["openai"](served.got[0], secret)
    assert type(told).__name__ == "ResponseCancelledWebhookEvent"


# Trying again


def test_an_event_is_tried_again_under_the_same_id_until_it_is_taken(
    sending: WorkerServices, served: Receiver
) -> None:
    statuses = iter([500, 302, TAKE])
    served.answer = lambda _: next(statuses)
    sending.webhooks.create(served.url)
    end_a_job(sending)
    send_all(sending)
    assert len({event.id for event in served.got}) == 1
    assert len({event.raw for event in served.got}) == 1
    [delivery] = deliveries(sending)
    assert [one["status"] for one in delivery.attempts] == [500, 302, 204]
    assert "redirects are not followed" in delivery.attempts[1]["error"]
    assert (delivery.state, delivery.failures) == ("delivered", 2)


def test_an_event_is_given_up_after_its_last_attempt_and_can_be_replayed(
    sending: WorkerServices, served: Receiver
) -> None:
    served.answer = lambda _: 500
    sending.webhooks.create(served.url)
    end_a_job(sending)
    for _ in range(4):
        make_due(sending)
        send_due(sending)
    [failed] = deliveries(sending)
    assert (failed.state, failed.due_at, len(failed.attempts)) == ("failed", None, 4)
    served.answer = lambda _: TAKE
    replayed = sending.webhook_deliveries.replay(failed.id)
    assert (replayed.state, replayed.failures) == (DeliveryState.PENDING, 0)
    send_due(sending)
    assert len({event.id for event in served.got}) == 1
    [taken] = deliveries(sending)
    assert (taken.state, len(taken.attempts)) == ("delivered", 5)
    sending.webhook_deliveries.replay(failed.id)
    send_due(sending)
    assert len(served.taken) == 2, "what was delivered can be had again"


def test_the_waits_are_those_of_the_settings(stack: WorkerServices, served: Receiver) -> None:
    served.answer = lambda _: 500
    with another(stack, webhook_allowed_hosts=["127.0.0.1"]) as sending:
        employ(sending, FakeProvider())
        sending.webhooks.create(served.url)
        end_a_job(sending)
        waits: list[float | None] = []
        for _ in range(7):
            make_due(sending)
            send_due(sending)
            with sending.ledger.transaction() as unit:
                now = unit.now()
            [one] = deliveries(sending)
            waits.append((one.due_at - now).total_seconds() if one.due_at else None)
    assert waits[-1] is None
    for wait, planned in zip(waits, [5, 300, 1_800, 7_200, 28_800, 86_400], strict=False):
        assert wait is not None
        assert planned - 5 < wait < planned * 1.1 + 1


def test_a_receiver_says_when_it_wants_the_event_again(
    sending: WorkerServices, served: Receiver
) -> None:
    served.answer = lambda _: 429
    served.headers = {"Retry-After": "3000"}
    sending.webhooks.create(served.url)
    end_a_job(sending)
    send_due(sending)
    [one] = deliveries(sending)
    with sending.ledger.transaction() as unit:
        assert one.due_at is not None
        assert 2_900 < (one.due_at - unit.now()).total_seconds() <= 3_000


def test_an_answer_without_end_is_not_read(sending: WorkerServices, served: Receiver) -> None:
    served.content = b"x" * 50_000_000
    served.answer = lambda _: 200
    sending.webhooks.create(served.url)
    end_a_job(sending)
    began = time.monotonic()
    send_due(sending)
    assert deliveries(sending)[0].state == "delivered"
    assert time.monotonic() - began < 30


# Workers that die, receivers that hang


def test_what_a_dead_worker_had_in_hand_is_sent_by_another(
    sending: WorkerServices, served: Receiver
) -> None:
    sending.webhooks.create(served.url)
    end_a_job(sending)
    with another(sending) as dead, dead.ledger.transaction() as unit:
        [taken] = unit.webhook_sending.claim(Room(10, 10, 10, {}), 30.0)
    send_due(sending)
    assert served.got == [], "a worker has it still"
    make_due(sending)  # its lease is over
    send_due(sending)
    [event] = served.got
    assert event.id == f"evt_{taken.event_id.hex}"


def test_a_worker_that_stops_gives_back_what_is_under_way(
    stack: WorkerServices, served: Receiver
) -> None:
    served.answer = lambda _: HANG
    with another(stack, **LOCAL) as stopping:
        employ(stopping, FakeProvider())
        stopping.webhooks.create(served.url)
        end_a_job(stopping)
        stopping.webhook_sender.run_once()
        wait_until(lambda: served.got, "the event at the receiver")
    served.answer = lambda _: TAKE
    with another(stack, **LOCAL) as other:
        send_due(other)
    assert len(served.got) == 2
    assert len({event.id for event in served.got}) == 1


def test_a_receiver_that_hangs_holds_up_no_other(stack: WorkerServices, served: Receiver) -> None:
    ada, eve = two_users(stack)
    with ExitStack() as servers:
        hanging = servers.enter_context(receiver(lambda _: HANG))
        how = {**LOCAL, "webhook_timeout_seconds": 60.0}
        with another(stack, **how) as sending:
            employ(sending, FakeProvider())
            sending.webhooks.create(hanging.url, user_id=ada)
            sending.webhooks.create(served.url, user_id=eve)
            for n in range(40):
                sending.jobs.cancel(generate(sending, f"{n}", user_id=ada).id)
            for n in range(40):
                sending.jobs.cancel(generate(sending, f"{n}", user_id=eve).id)

            def all_taken() -> bool:
                sending.webhook_sender.run_once()
                return len(served.taken) == 40

            wait_until(all_taken, "the events of the other endpoint", 60)
            assert len(hanging.got) <= 10, "a hanging endpoint has a few requests at most"
            hanging.is_over.set()


def test_one_host_that_hangs_holds_up_no_other_of_the_same_user(
    stack: WorkerServices, served: Receiver
) -> None:
    how = {**LOCAL, "webhook_timeout_seconds": 60.0}
    how["webhook_allowed_hosts"] = ["127.0.0.1", "localhost"]
    with receiver(lambda _: HANG) as hanging, another(stack, **how) as sending:
        employ(sending, FakeProvider())
        sending.webhooks.rotate_own_secret()
        for url in [hanging.url] * 40 + [served.url.replace("127.0.0.1", "localhost")] * 15:
            sending.jobs.cancel(generate(sending, webhook=url).id)

        def all_taken() -> bool:
            sending.webhook_sender.run_once()
            return len(served.taken) == 15

        wait_until(all_taken, "the events of the other host", 60)
        hanging.is_over.set()


ADD_TO_HOSTS = text("""
    INSERT INTO webhook_deliveries (id, endpoint_id, event_id, type, object_id, url, host, due_at)
    SELECT gen_random_uuid(), endpoints.id, gen_random_uuid(), 'response.completed',
        gen_random_uuid(), 'https://' || host || '/', host, now()
    FROM webhook_endpoints AS endpoints, unnest(CAST(:hosts AS text[])) AS host
    WHERE endpoints.user_id = :user
""")


def test_one_users_many_hosts_cost_others_nothing(sending: WorkerServices) -> None:
    """Neither time nor locks: a claim looks at so many deliveries of each endpoint."""
    ada, eve = two_users(sending)
    with sending.ledger.transaction() as unit:
        session = unit.webhook_sending._session
        for user, hosts in ((eve, 3_000), (ada, 5)):
            sending.webhooks.rotate_own_secret(user)
            names = [f"h{n}.example" for n in range(hosts)]
            session.execute(ADD_TO_HOSTS, {"user": user, "hosts": names})
    locked = "SELECT count(*) FROM webhook_deliveries WHERE xmax::text::bigint = txid_current()"
    with sending.ledger.transaction() as unit:
        taken = unit.webhook_sending.claim(Room(100, 30, 10, {}), 60.0)
        locks = unit.webhook_sending._session.execute(text(locked)).scalar_one()
    assert locks == len(taken)
    assert Counter(one.user_id for one in taken) == {eve: 30, ada: 5}


def test_what_waits_for_a_full_host_is_passed_over(sending: WorkerServices) -> None:
    ada, _ = two_users(sending)
    endpoint = sending.webhooks.rotate_own_secret(ada)
    assert endpoint.view.exists
    with sending.ledger.transaction() as unit:
        session = unit.webhook_sending._session
        for hosts in (["full.example"] * (LOOKED_AT + 100), ["other.example"]):
            session.execute(ADD_TO_HOSTS, {"user": ada, "hosts": hosts})
    with sending.ledger.transaction() as unit:
        first = unit.webhook_sending.claim(Room(100, 30, 10, {}), 60.0)
        busy = Counter(one.target for one in first)
        assert {one.host for one in first} == {"full.example"}
        then = unit.webhook_sending.claim(Room(90, 30, 10, busy), 60.0)
    assert [one.host for one in then] == ["other.example"]


def test_an_endpoint_that_has_just_failed_gets_one_event_at_a_time(
    sending: WorkerServices, served: Receiver
) -> None:
    served.answer = lambda _: 500
    sending.webhooks.create(served.url)
    for n in range(5):
        sending.jobs.cancel(generate(sending, f"{n}").id)
    send_due(sending)
    assert len(served.got) >= 5
    [endpoint] = sending.webhooks.get_page().rows
    assert endpoint.failures == 1, "those that failed together count once"
    make_due(sending)
    before = len(served.got)
    sending.webhook_sender.run_once()
    assert len(sending.webhook_sender._under_way) == 1
    wait_until(lambda: len(served.got) == before + 1, "one event")


def test_a_replay_while_an_attempt_is_under_way_is_one_more_attempt(
    sending: WorkerServices, served: Receiver
) -> None:
    may_answer = threading.Event()
    statuses = iter([500, TAKE])

    def answer(_: Event) -> int:
        status = next(statuses, TAKE)
        may_answer.wait(60)
        return status

    served.answer = answer
    sending.webhooks.create(served.url)
    sender = sending.webhook_sender
    end_a_job(sending)
    sender.run_once()
    wait_until(lambda: len(served.got) == 1, "the first attempt at the receiver")
    [delivery] = deliveries(sending)
    sending.webhook_deliveries.replay(delivery.id)
    sender.run_once()
    wait_until(lambda: len(served.got) == 2, "the replay at the receiver")
    may_answer.set()
    wait_until(lambda: len(sender._tried) == 2, "both answers")
    end_a_job(sending, "Another.")
    send_due(sending)
    assert [one.state for one in deliveries(sending)] == ["delivered", "delivered"]
    assert {one.failures for one in deliveries(sending)} == {0}, "the old attempt does not count"
    assert not sender._tried
    assert not sender._under_way
    assert len(served.got) == 3


def test_a_worker_that_stops_gives_back_a_replay_too(
    stack: WorkerServices, served: Receiver
) -> None:
    served.answer = lambda _: HANG
    with another(stack, **LOCAL) as stopping:
        employ(stopping, FakeProvider())
        stopping.webhooks.create(served.url)
        end_a_job(stopping)
        stopping.webhook_sender.run_once()
        stopping.webhook_deliveries.replay(deliveries(stopping)[0].id)
        stopping.webhook_sender.run_once()
        wait_until(lambda: len(served.got) == 2, "both attempts at the receiver")
    served.answer = lambda _: TAKE
    with another(stack, **LOCAL) as other:
        send_due(other)
    assert len(served.taken) == 1


# Endpoints that fail


def fail_often(sending: WorkerServices, times: int) -> None:
    for _ in range(times):
        make_due(sending)
        send_due(sending)


def test_ten_failures_in_a_row_disable_an_endpoint_and_its_user_is_told(
    stack: WorkerServices, served: Receiver
) -> None:
    served.answer = lambda _: 500
    with mail_server() as mails, with_mail(stack, mails) as mailing:
        how = {**LOCAL, "smtp_url": mailing.settings.smtp_url, "webhook_retry_seconds": [9.0] * 20}
        how["mail_from"] = mailing.settings.mail_from
        with another(stack, **how) as sending:
            employ(sending, FakeProvider())
            ada = add_user(sending)
            made = sending.webhooks.create(f"{served.url}?token=marmalade", user_id=ada)
            end_a_job(sending, user_id=ada)
            fail_often(sending, 9)
            assert sending.webhooks.get(made.webhook.id).enabled
            fail_often(sending, 1)
            disabled = sending.webhooks.get(made.webhook.id)
            assert not disabled.enabled
            assert "10 attempts" in str(disabled.disabled_reason)
            [mail] = sending.notifications.get_many()
            assert mail.user_id == ada
            assert "127.0.0.1 is disabled" in mail.subject
            [entry] = sending.audit.get_many(action="webhook.disabled")
            assert entry.object_id == str(made.webhook.id)
            assert "marmalade" not in str(entry)

            # Its events wait, and go out when it is enabled.
            job_id = end_a_job(sending, "Later.", user_id=ada)
            before = len(served.got)
            fail_often(sending, 2)
            assert len(served.got) == before
            served.answer = lambda _: TAKE
            with pytest.raises(WrongState, match="disabled"):
                sending.webhook_deliveries.test(made.webhook.id)
            enabled = sending.webhooks.update(made.webhook.id, enabled=True)
            assert (enabled.enabled, enabled.failures) == (True, 0)
            send_all(sending)
            assert str(job_id) in {event.body["data"]["id"] for event in served.taken}
            assert len(served.taken) == 2


def test_each_of_attempts_one_after_the_other_counts(
    sending: WorkerServices, served: Receiver
) -> None:
    """Also where an attempt begins as the one before it is noted."""
    served.answer = lambda _: 500
    made = sending.webhooks.create(served.url)
    sender = sending.webhook_sender
    sender._retry_seconds = [0.0] * 30
    sending.jobs.cancel(generate(sending).id)

    def has_failed(times: int) -> bool:
        sql(sending, "UPDATE webhook_endpoints SET rests_until = NULL")
        sender.run_once()
        return deliveries(sending)[0].failures >= times

    wait_until(lambda: has_failed(8), "eight failures")
    assert sending.webhooks.get(made.webhook.id).failures == deliveries(sending)[0].failures


def test_one_410_among_other_answers_disables_an_endpoint(
    sending: WorkerServices, served: Receiver
) -> None:
    statuses = iter([410, 500, 500])
    served.answer = lambda _: next(statuses)
    made = sending.webhooks.create(served.url)
    for n in range(3):
        sending.jobs.cancel(generate(sending, f"{n}").id)
    sending.webhook_sender.run_once()
    wait_until(lambda: len(sending.webhook_sender._tried) == 3, "all answers")
    # The answer that came last does not decide.
    tried = sorted(sending.webhook_sender._tried, key=lambda one: one.answer.status != 410)
    sending.webhook_sender._tried.clear()
    sending.webhook_sender._tried.extend(tried)
    sending.webhook_sender.run_once()
    disabled = sending.webhooks.get(made.webhook.id)
    assert not disabled.enabled
    assert "410" in str(disabled.disabled_reason)


def test_attempts_that_fail_one_after_the_other_but_ran_together_count_once(
    sending: WorkerServices, served: Receiver
) -> None:
    """Else an endpoint at which ten requests hang would be disabled when these time out."""
    waits = iter([0.1 * number for number in range(10)])

    def fail_late(_: Event) -> int:
        time.sleep(next(waits, 0))
        return 500

    served.answer = fail_late
    made = sending.webhooks.create(served.url)
    sending.webhook_sender._retry_seconds = [0.0, 1_000.0]
    for n in range(10):
        sending.jobs.cancel(generate(sending, f"{n}").id)

    def all_failed() -> bool:
        sending.webhook_sender.run_once()
        return sum(one.failures for one in deliveries(sending)) == 10

    wait_until(all_failed, "all attempts to fail")
    endpoint = sending.webhooks.get(made.webhook.id)
    assert (endpoint.enabled, endpoint.failures) == (True, 1)


def test_another_address_starts_anew(sending: WorkerServices, served: Receiver) -> None:
    served.answer = lambda _: 500
    made = sending.webhooks.create(served.url)
    end_a_job(sending)
    fail_often(sending, 3)
    assert sending.webhooks.get(made.webhook.id).failures == 3
    changed = sending.webhooks.update(made.webhook.id, url=f"{served.url}/new")
    assert changed.failures == 0
    served.answer = lambda _: TAKE
    sql(sending, "UPDATE webhook_deliveries SET due_at = now()")
    send_due(sending)
    assert served.taken[-1].path == "/hooks/new"


def test_events_go_out_while_redis_is_away(stack: WorkerServices, served: Receiver) -> None:
    made = stack.webhooks.create("https://example.org/")
    sql(stack, "UPDATE webhook_endpoints SET url = :url", url=served.url)
    stack.jobs.cancel(stack.jobs.enqueue_generation("Hello.", provider="demo").id)
    with another(stack, **LOCAL, redis_url=NO_REDIS) as alone:
        send_due(alone)
    VERIFIERS["svix"](served.taken[0], made.secret)


def test_a_success_ends_a_row_of_failures(sending: WorkerServices, served: Receiver) -> None:
    statuses = iter([500, TAKE] * 20)
    served.answer = lambda _: next(statuses)
    made = sending.webhooks.create(served.url)
    for n in range(12):
        sending.jobs.cancel(generate(sending, f"{n}").id)
        send_all(sending)
    assert sending.webhooks.get(made.webhook.id).failures == 0


def test_an_endpoint_rests_after_some_failures(sending: WorkerServices, served: Receiver) -> None:
    served.answer = lambda _: 500
    sending.webhooks.create(served.url)
    end_a_job(sending)
    fail_often(sending, 3)
    sql(sending, "UPDATE webhook_endpoints SET rests_until = now() + interval '1 hour'")
    sending.jobs.cancel(generate(sending).id)
    before = len(served.got)
    send_due(sending)
    assert len(served.got) == before


def test_a_receiver_that_is_gone_gets_nothing_more(
    sending: WorkerServices, served: Receiver
) -> None:
    served.answer = lambda _: 410
    made = sending.webhooks.create(served.url)
    end_a_job(sending)
    send_due(sending)
    assert "410" in str(sending.webhooks.get(made.webhook.id).disabled_reason)


def test_a_disabled_user_gets_nothing(sending: WorkerServices, served: Receiver) -> None:
    ada, _ = two_users(sending)
    sending.webhooks.create(served.url, user_id=ada)
    end_a_job(sending, user_id=ada)
    sql(sending, "UPDATE users SET disabled_at = now()")
    send_due(sending)
    assert served.got == []
    sql(sending, "UPDATE users SET disabled_at = NULL")
    send_due(sending)
    assert len(served.taken) == 1


# Secrets


def test_after_a_rotation_both_secrets_sign_for_a_day(
    sending: WorkerServices, served: Receiver
) -> None:
    made = sending.webhooks.create(served.url)
    rotated = sending.webhooks.rotate(made.webhook.id)
    repeated = sending.webhooks.rotate(made.webhook.id)
    assert len({made.secret, rotated.secret, repeated.secret}) == 3
    until = repeated.webhook.previous_until
    assert until is not None
    assert until == rotated.webhook.previous_until
    end_a_job(sending)
    send_due(sending)
    for secret in (made.secret, repeated.secret):
        for verify in VERIFIERS.values():
            verify(served.got[-1], secret)
    sql(sending, "UPDATE webhook_endpoints SET previous_until = now()")
    end_a_job(sending)
    send_due(sending)
    VERIFIERS["svix"](served.got[-1], repeated.secret)
    with pytest.raises(WebhookVerificationError):
        VERIFIERS["standardwebhooks"](served.got[-1], made.secret)


def test_addresses_that_jobs_name_are_signed_with_the_users_own_secret(
    sending: WorkerServices, served: Receiver
) -> None:
    assert not sending.webhooks.get_own_secret().exists
    first = sending.webhooks.rotate_own_secret()
    assert (first.view.previous_until, sending.webhooks.get_own_secret().exists) == (None, True)
    second = sending.webhooks.rotate_own_secret()
    assert second.view.previous_until is not None
    end_a_job(sending, webhook=served.url)
    send_due(sending)
    for secret in (first.secret, second.secret):
        VERIFIERS["svix"](served.got[0], secret)


def test_no_secret_stands_in_the_ledger_or_in_redis(
    sending: WorkerServices, served: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    made = sending.webhooks.create(served.url)
    own = sending.webhooks.rotate_own_secret()
    end_a_job(sending)
    send_due(sending)
    with sending.ledger.transaction() as unit:
        tables = ("webhook_endpoints", "webhook_deliveries", "audit_log", "jobs")
        rows = [unit.session.scalars(text(f"SELECT to_jsonb(t) FROM {t} t")).all() for t in tables]
    stored = str(rows) + everything_in(sending.redis_url)
    for secret in (made.secret, own.secret):
        kept = secret.removeprefix("whsec_")
        assert kept not in stored
        assert kept not in caplog.text


def test_secrets_live_on_when_secret_key_is_replaced(
    stack: WorkerServices, served: Receiver
) -> None:
    made = stack.webhooks.create("https://example.org/")
    stack.webhooks.rotate(made.webhook.id)
    before = stack.settings.secret_key
    new = SecretStr("another secret key")
    how = {**LOCAL, "secret_key": new}
    with another(stack, **how, previous_secret_key=before) as both:
        both.webhook_upkeep.run_once()
    sql(stack, "UPDATE webhook_endpoints SET url = :url", url=served.url)
    with another(stack, **how) as after:
        employ(after, FakeProvider())
        end_a_job(after)
        send_due(after)
    VERIFIERS["svix"](served.got[0], made.secret)


def test_a_worker_with_another_secret_key_sends_nothing_and_blames_no_receiver(
    sending: WorkerServices, served: Receiver
) -> None:
    made = sending.webhooks.create(served.url)
    sending.webhook_deliveries.test(made.webhook.id)
    with another(sending, secret_key=SecretStr("quite another one")) as wrong:
        fail_often(wrong, 11)
        [one] = deliveries(wrong)
    assert "PREVIOUS_SECRET_KEY" in one.attempts[0]["error"]
    assert (one.state, one.failures) == ("pending", 0)
    endpoint = sending.webhooks.get(made.webhook.id)
    assert (endpoint.enabled, endpoint.failures) == (True, 0)
    make_due(sending)
    send_due(sending)
    assert len(served.taken) == 1


def test_sealed_secrets_differ_each_time() -> None:
    box = SecretBox([b"k" * 32])
    assert box.seal("whsec_x") != box.seal("whsec_x")
    assert box.open(box.seal("whsec_x")) == "whsec_x"


# Tests, deletions, upkeep


def test_a_test_delivery_is_sent_whatever_the_endpoint_asks_for(
    sending: WorkerServices, served: Receiver
) -> None:
    made = sending.webhooks.create(served.url, ["run.failed"])
    asked = sending.webhook_deliveries.test(made.webhook.id)
    send_due(sending)
    [event] = served.got
    VERIFIERS["openai"](event, made.secret)
    assert (event.body["type"], event.id) == ("webhook.test", asked.event_id)
    [shown] = sending.webhook_deliveries.get_page(made.webhook.id).rows
    assert (shown.state, shown.attempts[0].status) == (DeliveryState.DELIVERED, 204)


def test_a_deleted_endpoint_gets_nothing(sending: WorkerServices, served: Receiver) -> None:
    made = sending.webhooks.create(served.url)
    end_a_job(sending)
    sending.webhooks.delete(made.webhook.id)
    send_due(sending)
    assert served.got == []
    sending.cleanup.run_once()
    assert deliveries(sending) == []
    with pytest.raises(NotFound):
        sending.webhooks.get(made.webhook.id)


def test_old_deliveries_are_deleted(sending: WorkerServices, served: Receiver) -> None:
    sending.webhooks.create(served.url)
    old, new = end_a_job(sending, "Old."), end_a_job(sending, "New.")
    send_due(sending)
    sql(
        sending,
        "UPDATE webhook_deliveries SET created_at = now() - interval '8 days' WHERE object_id = :o",
        o=old,
    )
    sending.cleanup.run_once()
    assert [one.object_id for one in deliveries(sending)] == [new]
