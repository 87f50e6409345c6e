"""The generation queue's task."""

from promptstack.services.execution.executor import JobOutcome
from promptstack.tasks.job_task import JobTask


async def generate_text(self: JobTask, job: str, sent_at: str | None = None) -> JobOutcome:
    """Run the generation job of this id."""
    message = self.read(job, sent_at)
    return await self.executor.run(message.job_id, self.on_progress, message.sent_at)
