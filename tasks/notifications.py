"""The task of notifications."""

from promptstack.services.execution.executor import JobOutcome
from promptstack.tasks.job_task import JobTask


async def send_notification(self: JobTask, job: str, sent_at: str | None = None) -> JobOutcome:
    """Send the mail of the notification of this id."""
    message = self.read(job, sent_at)
    return await self.executor.run(message.job_id, self.on_progress, message.sent_at)
