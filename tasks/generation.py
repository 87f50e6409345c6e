"""The generation queue's task."""

from typing import Any

from tasks.job_task import JobTask


def generate_text(self: JobTask, job: str) -> dict[str, Any]:
    """Run the generation job of this id."""
    return self.finish(self.workshop.generation.run(self.job_id(job), self.report))
