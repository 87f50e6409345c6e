"""The handler of notification jobs: a mail's way from the ledger to the mail server.

    read who gets it -> connect and address it -> note that it leaves, COMMIT -> send its text
        -> note the reply and end the job, COMMIT

A mail whose reply never came may have been accepted. It is sent again with the same Message-ID,
and stays on record as uncertain.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from promptstack.config.errors import PromptStackError
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.notification_models import DeliveryState
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.execution.active_jobs import HandedBack
from promptstack.services.execution.job_context import JobContext
from promptstack.services.notifications.compose import compose
from promptstack.services.notifications.errors import (
    MailNotConfigured,
    MailPostponed,
    MailRefused,
)
from promptstack.services.notifications.mail import Envelope, Notification, SendsMail
from promptstack.services.text import make_storable

WORKER_DIED = "The worker that sent it died or was stopped before it heard the reply."


@dataclass
class _Delivery:
    """A mail on its way."""

    claim: Claim
    mail: Envelope
    ids: list[int] = field(default_factory=list)
    """Of its row, once it is there: the text may have left."""

    def begin(self, unit: UnitOfWork) -> int:
        unit.steps.check_claim(self.claim)
        return unit.deliveries.begin(
            self.claim.job_id, self.claim.attempt, make_storable(self.mail.recipient)
        )

    def settle(
        self, unit: UnitOfWork, state: DeliveryState, code: int | None, reply: str | None
    ) -> None:
        for delivery_id in self.ids:
            unit.deliveries.settle(delivery_id, state, code, reply and make_storable(reply))


class MailDelivery:
    """Delivers notifications."""

    def __init__(self, open_mailer: Callable[[], SendsMail | None], mail_from: str | None) -> None:
        self._open_mailer = open_mailer
        self._mail_from = mail_from

    async def deliver(self, job: JobContext) -> None:
        """Hand a notification's mail to the mail server, and store that it was accepted."""
        mailer = self._open_mailer()
        if mailer is None or self._mail_from is None:
            raise MailNotConfigured("This worker has no mail server: set SMTP_URL and MAIL_FROM.")
        job.handle.check_may_begin()
        mail = await job.ledger.write_async(lambda unit: self._prepare(unit, job.claim))
        if mail is None:
            return
        delivery = _Delivery(job.claim, mail)

        async def note() -> None:
            delivery.ids.append(await job.ledger.write_async(delivery.begin))

        try:
            reply = await job.handle.run(mailer.send(mail, note))
        except (PromptStackError, HandedBack) as error:
            await self._settle_failed(job, delivery, error)
            raise
        await self._store_accepted(job, delivery, reply)

    def _prepare(self, unit: UnitOfWork, claim: Claim) -> Envelope | None:
        """Write the mail. None if there is nothing to send: it was accepted before."""
        notification = Notification.model_validate(claim.request)
        unit.steps.check_claim(claim)
        unit.deliveries.lose(claim.job_id, WORKER_DIED)
        if unit.deliveries.was_accepted(claim.job_id):
            # It was, as the job was being cancelled or taken from its worker.
            unit.steps.succeed(claim, {"accepted": True})
            return None
        user = unit.users.get(notification.user_id)
        if user is None or user.disabled_at is not None:
            raise MailRefused("The user was deleted or disabled.")
        return compose(notification, str(self._mail_from), user.email, user.name)

    @staticmethod
    async def _settle_failed(
        job: JobContext, delivery: _Delivery, error: PromptStackError | HandedBack
    ) -> None:
        """Record a refusal, or that nobody knows."""
        state, code, reply = DeliveryState.UNKNOWN, None, WORKER_DIED
        if isinstance(error, MailPostponed | MailRefused):
            state, code, reply = DeliveryState.REFUSED, error.reply_code, error.detail or str(error)
            if not delivery.ids and isinstance(error, MailRefused):
                delivery.ids.append(await job.ledger.write_async(delivery.begin))
        elif isinstance(error, PromptStackError):
            reply = f"{error} ({error.detail})" if error.detail else str(error)
        if delivery.ids:
            await job.ledger.write_async(lambda unit: delivery.settle(unit, state, code, reply))

    @staticmethod
    async def _store_accepted(job: JobContext, delivery: _Delivery, reply: str) -> None:
        """Record the acceptance, also of a job that was taken from this worker meanwhile."""

        def accept(unit: UnitOfWork) -> None:
            delivery.settle(unit, DeliveryState.ACCEPTED, 250, reply)

        def accept_and_succeed(unit: UnitOfWork) -> None:
            # First the job's row, which other transactions lock before its deliveries.
            unit.steps.succeed(job.claim, {"accepted": True})
            accept(unit)

        try:
            await job.ledger.write_async(accept_and_succeed)
        except ClaimLost:
            await job.ledger.write_async(accept)
            raise
