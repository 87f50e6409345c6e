"""The generation queue's task."""

from typing import Any

from promptstack.tasks.job_task import JobTask


def generate_text(self: JobTask, job: str, sent_at: str | None = None) -> dict[str, Any]:
    """Run the generation job of this id."""
    message = self.read(job, sent_at)
    return self.finish(self.executor.run(message.job_id, self.on_progress, message.sent_at))
