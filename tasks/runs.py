"""The tasks of runs: their shards and their ends."""

from typing import Any

from promptstack.tasks.job_task import JobTask


def run_shard(self: JobTask, job: str, sent_at: str | None = None) -> dict[str, Any]:
    """Work on the shard of this id."""
    message = self.read(job, sent_at)
    return self.finish(self.executor.run(message.job_id, self.on_progress, message.sent_at))


def finalize_run(self: JobTask, job: str, sent_at: str | None = None) -> dict[str, Any]:
    """Do what is left when every item of a run has ended."""
    message = self.read(job, sent_at)
    return self.finish(self.executor.run(message.job_id, self.on_progress, message.sent_at))
