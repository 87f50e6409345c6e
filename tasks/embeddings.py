"""The embeddings queue's task."""

from typing import Any

from tasks.job_task import JobTask


def generate_embeddings(self: JobTask, job: str) -> dict[str, Any]:
    """Run the embedding job of this id."""
    return self.finish(self.workshop.embedding.run(self.job_id(job), self.report))
