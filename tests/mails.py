"""What tests of notifications share: a stack with a mail server, users, and one mail's way."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from pydantic import SecretStr

from promptstack.repositories.audit_models import ActorKind
from promptstack.services.audit.actor import Actor
from promptstack.services.notifications.service import NotificationView
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import another
from tests.mail_server import MailServer

FROM = "Prompt Stack <stack@example.org>"
ROOT = Actor(ActorKind.USER, UUID(int=1), "root@example.org", None, "203.0.113.1")


@contextmanager
def with_mail(
    stack: WorkerServices, server: MailServer, *, retry_seconds: float = 0.0
) -> Iterator[WorkerServices]:
    """A worker that sends its mail there."""
    url = SecretStr(f"smtp://localhost:{server.port}?tls=off")
    with another(
        stack,
        smtp_url=url,
        mail_from=FROM,
        mail_timeout_seconds=20.0,
        mail_retry_seconds=retry_seconds,
    ) as opened:
        yield opened


def add_user(stack: WorkerServices, email: str = "ada@example.org", **values: object) -> UUID:
    with stack.ledger.transaction() as unit:
        return unit.users.create(email=email, **values).id


def send(
    stack: WorkerServices, user_id: UUID, message: str = "Hello.", *, subject: str = "News"
) -> UUID:
    return stack.notifications.send(user_id, subject, message, actor=ROOT)


def shown(stack: WorkerServices, notification_id: UUID) -> NotificationView:
    found = {one.id: one for one in stack.notifications.get_many(limit=10_000)}
    return found[notification_id]
