"""The tasks of runs: their shards and their ends."""

from promptstack.services.execution.executor import JobOutcome
from promptstack.tasks.job_task import JobTask


async def run_shard(self: JobTask, job: str, sent_at: str | None = None) -> JobOutcome:
    """Work on the shard of this id."""
    message = self.read(job, sent_at)
    return await self.executor.run(message.job_id, self.on_progress, message.sent_at)


async def finalize_run(self: JobTask, job: str, sent_at: str | None = None) -> JobOutcome:
    """Do what is left when every item of a run has ended."""
    message = self.read(job, sent_at)
    return await self.executor.run(message.job_id, self.on_progress, message.sent_at)
