"""Mails while the mail server refuses and drops, and workers are killed: each arrives once."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest

from promptstack.repositories.models import JobState
from promptstack.services.notifications.mailer import CONNECTIONS
from promptstack.tasks.worker_services import WorkerServices
from tests.integration.invariants.test_messages_carry_ids import everything_in
from tests.mail_server import MailServer, mail_server
from tests.mails import FROM, ROOT, with_mail
from tests.processes import Process, wait_until

MAILS = int(os.environ.get("MAILS", "150"))
"""`MAILS=1000 pytest tests/acceptance/test_notifications.py` is the whole of it."""
KILLS = 5
MARK = "marmalade"
logger = logging.getLogger(__name__)


class HardServer:
    """What a mail server does to its senders: it refuses, drops and is slow."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.dropped = 0
        self.server: MailServer

    def refuse_every_third(self, _: int) -> str | None:
        """Of the recipients, the first time."""
        address = self.server.asked
        if (
            int(address.partition("@")[0].removeprefix("u")) % 3 == 0
            and address not in self.refused
        ):
            self.refused.add(address)
            return "450 4.2.0 Greylisted, try again later"
        return None

    def drop_every_tenth(self, text: int) -> str | None:
        """Of the texts: before it is taken over, or after."""
        if text % 10:
            return None
        self.dropped += 1
        return "cut" if self.dropped % 2 else "accept and cut"


@pytest.fixture
def users(stack: WorkerServices) -> list[str]:
    with stack.ledger.transaction() as unit:
        emails = [f"u{number}@example.org" for number in range(MAILS)]
        return [str(unit.users.create(email=email).id) for email in emails]


def test_each_mail_is_accepted_once_but_for_those_that_were_cut_off(
    stack: WorkerServices, users: list[str], start_worker: Callable[..., Process]
) -> None:
    hard = HardServer()
    with (
        mail_server(
            on_rcpt=hard.refuse_every_third,
            on_data=hard.drop_every_tenth,
            on_connection=lambda count: None if count % 10 else "cut",
            seconds=0.01,
        ) as server,
        with_mail(stack, server) as sender,
    ):
        hard.server = server
        url = f"smtp://localhost:{server.port}?tls=off"
        worker = start_worker(SMTP_URL=url, MAIL_FROM=FROM, MAIL_RETRY_SECONDS="0")
        for user_id in users:
            sender.notifications.send(user_id, MARK, f"{MARK} {user_id}", actor=ROOT)
        for kill in range(1, KILLS + 1):
            enough = MAILS * kill // (KILLS + 1)
            wait_until(partial(has_accepted, server, enough), f"{enough} mails")
            worker.kill()
            said = worker.output() + everything_in(stack.redis_url)
            assert MARK not in said
            assert "example.org" not in said
            worker = start_worker(SMTP_URL=url, MAIL_FROM=FROM, MAIL_RETRY_SECONDS="0")
        wait_until(lambda: not open_jobs(stack), "all mails to have ended", seconds=300)

    sent = {one.message_id: one for one in stack.notifications.get_many(limit=2 * MAILS)}
    assert {one.state for one in sent.values()} == {JobState.SUCCEEDED}
    listed = {
        one.message_id for one in stack.notifications.get_many(is_uncertain=True, limit=2 * MAILS)
    }
    times = Counter(server.ids)
    assert times.keys() == sent.keys(), "each was accepted"
    twice = {message_id for message_id, count in times.items() if count > 1}
    assert twice <= listed, "none came twice of which nobody could know"
    assert len(hard.refused) == len(range(0, MAILS, 3))
    assert hard.dropped >= MAILS // 10
    # No more is listed than was cut off, by the server or by the death of a worker.
    assert len(listed) <= hard.dropped + KILLS * CONNECTIONS
    logger.info(
        "%d mails: %d refused at first, %d texts dropped, %d connections, %d workers killed; %d "
        "accepted once, %d twice or more, %d listed as uncertain",
        MAILS,
        len(hard.refused),
        hard.dropped,
        server.connections,
        KILLS,
        MAILS - len(twice),
        len(twice),
        len(listed),
    )


def has_accepted(server: MailServer, mails: int) -> bool:
    return len(server.accepted) >= mails


def open_jobs(stack: WorkerServices) -> int:
    with stack.ledger.transaction() as unit:
        return sum(unit.jobs.count_open().values())
