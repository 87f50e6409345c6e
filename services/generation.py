"""What a worker does with a generation job."""

from typing import Any
from uuid import UUID

from services.execution import ClaimedJob, Execution, JobOutcome, Report
from services.llm.base import GenerationRequest


class GenerationService:
    """Generates a text for each job."""

    def __init__(self, execution: Execution) -> None:
        self._execution = execution

    def run(self, job_id: UUID, report: Report) -> JobOutcome:
        """Do the job if it is there to take; see `Execution.run`."""
        return self._execution.run(job_id, _generate, report)


def _generate(job: ClaimedJob) -> dict[str, Any]:
    claim = job.claim
    request = GenerationRequest.model_validate(claim.request)
    response = job.call(
        lambda llm: llm.generate_text(request, claim.user_id, failures=claim.failures)
    )
    return {
        "text": response.text,
        "model": response.model,
        "finish_reason": response.finish_reason,
        "input_tokens": response.input_tokens,
        "output_tokens": response.output_tokens,
        "tokens_used": response.tokens_used,
        "provider_request_id": response.provider_request_id,
    }
