"""The handler of generation jobs."""

import logging
from collections.abc import Sequence

from promptstack.config.errors import PromptStackError
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.models import Billing
from promptstack.services.accounting.billing import billing_of
from promptstack.services.accounting.upper_bounds import most_of_generation
from promptstack.services.execution.job_context import JobContext
from promptstack.services.execution.provider_calls import CallOutcome, ProviderCall, ProviderCalls
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.listening import Listener
from promptstack.services.llm.requests import GenerationRequest
from promptstack.services.streams.writer import TextStream, TextStreamWriter
from promptstack.services.text import make_storable_json

logger = logging.getLogger(__name__)

EXPECTED_OUTPUT_TOKENS = 256
"""Assumed if a request sets no maximum; the limiter learns what such calls really take."""


async def generate(
    calls: ProviderCalls, texts: TextStreamWriter, job: JobContext
) -> CallOutcome[LLMResponse]:
    """Ask the job's provider, and its fallbacks in their order while none can answer.

    Raises the error that decides what becomes of the job.
    """
    request = GenerationRequest.model_validate(job.claim.request)
    if request.stream:
        job.text = texts.open(job.claim.job_id, job.claim.attempt)
    met: list[PromptStackError] = []
    for target in request.targets():
        try:
            call = await calls.make(job, _call(job.claim, target, job.text))
            if job.text is not None:
                job.text.correct(call.answer.text)
            return call
        except PromptStackError as error:
            if not (error.falls_back or error.is_wait):
                raise
            met.append(error)
            if not error.falls_back:
                break
            logger.warning("%s/%s does not answer: %s", target.provider, target.model, error.code)
    raise _deciding(met)


def _call(
    claim: Claim, target: GenerationRequest, text: TextStream | None
) -> ProviderCall[LLMResponse]:
    listener = None if text is None else Listener(text.write)

    async def ask(llm: LLMService) -> LLMResponse:
        if text is not None:
            text.begin(f"{target.provider}/{target.model} is asked")
        return await llm.generate_text(
            target, claim.user_id, failures=claim.failures, listener=listener
        )

    def need(llm: LLMService) -> Need:
        expected = llm.estimate_tokens(target.text())
        output = target.max_tokens or EXPECTED_OUTPUT_TOKENS
        return Need(expected, output, claim.is_bulk, claim.user_id, claim.tier)

    return ProviderCall(
        provider=target.provider,
        model=target.model,
        ask=ask,
        need=need,
        most=lambda: most_of_generation(target),
        listener=listener,
    )


def _deciding(met: Sequence[PromptStackError]) -> PromptStackError:
    """Choose the error that decides what becomes of the job.

    A call that may have been billed uses up a retry even if a fallback only has to wait: otherwise
    the job would pay again and again. A fallback without quota does not end a job that another
    provider may answer later.
    """
    paid = [
        error
        for error in met
        if error.counts_as_failure and billing_of(error) is not Billing.NOT_BILLED
    ]
    transient = [error for error in met if error.transient]
    return ((paid if met[-1].is_wait else []) or transient or list(met))[-1]


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
