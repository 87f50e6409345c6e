"""What a worker does with a generation job."""

from datetime import datetime
from uuid import UUID

from promptstack.repositories.jobs.records import Claim
from promptstack.services.execution.executor import Executor, JobOutcome
from promptstack.services.execution.job_context import JobContext, Report
from promptstack.services.execution.provider_calls import ProviderCall
from promptstack.services.execution.results import JobResult
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.base import LLMResponse, LLMService
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.text import make_storable_json

EXPECTED_OUTPUT_TOKENS = 256
"""Taken where a request sets no maximum; the limiter learns what such calls really take."""


class GenerationService:
    """Generates a text for each job."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def run(self, job_id: UUID, report: Report, published_at: datetime | None = None) -> JobOutcome:
        """Do the job if it is there to take; see `Executor.run`."""
        return self._executor.run(job_id, _generate, report, published_at)


def _generate(job: JobContext) -> None:
    claim = job.claim
    request = GenerationRequest.model_validate(claim.request)

    # With the attempt, in one transaction: an answer on record must be there to read.
    keep = JobResult(claim, result_of)
    job.call(*(_call(claim, target) for target in request.targets()), keep=keep)
    job.standing = keep.standing


def _call(claim: Claim, target: GenerationRequest) -> ProviderCall:
    def need(llm: LLMService) -> Need:
        expected = llm.estimate_tokens(target.text())
        return Need(expected, target.max_tokens or EXPECTED_OUTPUT_TOKENS, claim.is_bulk)

    return ProviderCall(
        provider=target.provider,
        model=target.model,
        ask=lambda llm: llm.generate_text(target, claim.user_id, failures=claim.failures),
        need=need,
    )


def result_of(response: LLMResponse) -> dict[str, object]:
    """An answer as it is stored."""
    result = {
        "text": response.text,
        "model": response.model,
        "finish_reason": response.finish_reason,
        "input_tokens": response.input_tokens,
        "output_tokens": response.output_tokens,
        "tokens_used": response.tokens_used,
        "cached_tokens": response.cached_tokens,
        "tool_calls": list(response.tool_calls),
        "provider_request_id": response.provider_request_id,
    }
    stored: dict[str, object] = make_storable_json(result)
    return stored
