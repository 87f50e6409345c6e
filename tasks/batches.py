"""The task of batches."""

from promptstack.services.execution.executor import JobOutcome
from promptstack.tasks.job_task import JobTask


async def take_batch_in(self: JobTask, job: str, sent_at: str | None = None) -> JobOutcome:
    """Take in the file of the batch whose job has this id."""
    message = self.read(job, sent_at)
    return await self.executor.run(message.job_id, self.on_progress, message.sent_at)
