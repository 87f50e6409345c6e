"""What one input brings upon a call stays with it: its neighbours are served, the run goes on."""

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from promptstack.config.settings import Settings
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.services.execution.failure_policy import MAX_WASTE_FACTOR
from promptstack.services.llm.errors import (
    BadResponse,
    ConnectionFailed,
    ContextTooLong,
    Denied,
    InputRefused,
    Intercepted,
    InvalidProviderRequest,
    Overloaded,
    ProviderTimeout,
    ServerBroke,
)
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.jobs import execute
from tests.runs import failures, one, work

SOON = 0.01
FAULTS: dict[str, Callable[[], Exception]] = {
    "INVALID_PROVIDER_REQUEST": lambda: InvalidProviderRequest("No.", status=422),
    "CONTEXT_TOO_LONG": lambda: ContextTooLong("No.", status=400),
    "CONTENT_REFUSED": lambda: InputRefused("No.", status=400),
    "PROVIDER_DENIED": lambda: Denied("No.", status=403),
    "PROVIDER_INTERCEPTED": lambda: Intercepted("No.", status=403, retry_after=SOON),
    "PROVIDER_BROKE": lambda: ServerBroke("No.", status=500, retry_after=SOON),
    "PROVIDER_UNREACHABLE": lambda: ConnectionFailed("No.", retry_after=SOON),
    "PROVIDER_TIMEOUT": lambda: ProviderTimeout("No.", retry_after=SOON),
    "BAD_PROVIDER_RESPONSE": lambda: BadResponse("No.", status=200, retry_after=SOON),
    "INTERNAL_ERROR": lambda: KeyError("nobody expected it"),
}


class Picky(FakeProvider):
    """Fails where a text begins with the code of a fault, or a call has too many texts."""

    name = "picky"
    most_texts = 64

    async def called(self, texts: Sequence[str], failures: int) -> None:
        for text in texts:
            for code, fault in FAULTS.items():
                if text.lstrip("# ").startswith(code):
                    raise fault()
            if text.startswith("all busy"):
                raise Overloaded("Busy.", status=503, retry_after=SOON)
            if text.startswith("slow"):
                await asyncio.sleep(1.0)
        if len(texts) > self.most_texts:
            raise ServerBroke("Out of memory.", status=500, retry_after=SOON)


@pytest.fixture
def stack(settings: Settings) -> Iterator[WorkerServices]:
    """With passages as long as they are by default."""
    with WorkerServices.open(settings) as opened:
        yield opened


@pytest.fixture(autouse=True)
def picky(stack: WorkerServices) -> Picky:
    return Picky().serve(stack)


@pytest.mark.parametrize("code", FAULTS)
def test_of_forty_texts_in_a_call_the_one_that_fails_fails_alone(
    stack: WorkerServices, picky: Picky, code: str
) -> None:
    texts = [f"text {n}" for n in range(39)] + [f"{code} text"]
    done = work(stack, stack.runs.embed(texts, provider="picky", max_retries=2).id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 39, 1)
    assert failures(stack, done) == {"40": code}
    # Each level of the search asks two calls: those of a server in trouble come after its tries.
    assert picky.calls <= 3 + 2 * 6 + 3


@pytest.mark.parametrize("code", FAULTS)
def test_of_forty_prompts_the_one_that_fails_fails_alone(stack: WorkerServices, code: str) -> None:
    prompts = [f"text {n}" for n in range(39)] + [f"{code} text"]
    done = work(stack, stack.runs.generate(prompts, provider="picky", max_retries=1).id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 39, 1)
    assert failures(stack, done) == {"40": code}


def test_a_server_that_fails_for_every_text_gets_a_bounded_number_of_calls(
    stack: WorkerServices,
    picky: Picky,
) -> None:
    texts = [f"PROVIDER_BROKE {n}" for n in range(64)]
    done = work(stack, stack.runs.embed(texts, provider="picky", max_retries=2).id)
    assert (done.state, done.failed) == (RunState.COMPLETED, 64)
    assert max(picky.asked.values()) <= 3 + MAX_WASTE_FACTOR
    # Where it says that it is busy, no text is at fault, and none is looked for.
    busy = [f"all busy {n}" for n in range(64)]
    before = picky.calls
    work(stack, stack.runs.embed(busy, provider="picky", max_retries=2).id)
    assert picky.calls - before == 3


@pytest.mark.parametrize("code", ["PROVIDER_DENIED", "PROVIDER_INTERCEPTED"])
@pytest.mark.parametrize("kind", ["embed", "generate"])
def test_what_all_calls_are_denied_ends_the_run_as_a_wrong_key(
    stack: WorkerServices, picky: Picky, code: str, kind: str
) -> None:
    texts = [f"{code} {n}" for n in range(1_600)]
    start = getattr(stack.runs, kind)
    done = work(stack, start(texts, provider="picky", max_retries=1, in_flight=4).id)
    assert (done.state, done.error_code) == (RunState.FAILED, "PROVIDER_AUTHENTICATION")
    assert "All calls are refused" in (done.error or "")
    # Halves are asked until texts stand alone, and what is transient comes in waves. All texts
    # together would be asked for in 1,600 calls and more.
    assert picky.calls < 1_000


def test_one_denied_text_in_each_call_is_no_wrong_key(stack: WorkerServices) -> None:
    texts = [f"PROVIDER_DENIED {n}" if n % 64 == 9 else f"text {n}" for n in range(64 * 24)]
    done = work(stack, stack.runs.embed(texts, provider="picky", in_flight=24).id)
    assert (done.state, done.failed) == (RunState.COMPLETED, 24)


def test_denials_that_come_before_the_first_answers_are_no_wrong_key(stack: WorkerServices) -> None:
    prompts = [f"slow {n}" for n in range(60)] + [f"PROVIDER_DENIED {n}" for n in range(30)]
    done = work(stack, stack.runs.generate(prompts, provider="picky", in_flight=100).id)
    assert (done.state, done.succeeded, done.failed) == (RunState.COMPLETED, 60, 30)


@pytest.mark.parametrize("code", sorted(FAULTS.keys() - {"INTERNAL_ERROR", "CONTEXT_TOO_LONG"}))
def test_a_document_keeps_the_vectors_before_the_chunk_that_fails(
    stack: WorkerServices, picky: Picky, code: str
) -> None:
    # Each heading is a chunk of its own, and this one is the last.
    names = [*(f"Part {n}" for n in range(9)), code]
    text = "\n\n".join(f"# {name}\n\n{'word ' * 300}" for name in names)
    job = stack.jobs.enqueue_embedding(text, source="a.md", provider="picky", max_retries=1)
    for _ in range(2):
        one(stack, "UPDATE jobs SET not_before = NULL RETURNING id")
        execute(stack, job.id)
    done = stack.jobs.get(job.id)
    assert (done.state, done.error_code) == (JobState.FAILED, code)
    total = one(stack, "SELECT count(*) FROM chunks")[0]
    assert f"chunk {total} of {total}" in (done.error or "")
    stored = one(stack, "SELECT count(*) FROM embeddings")[0]
    assert stored == total - 1 >= 9
    # Once it is mended, only it is paid for.
    asked = picky.asked.total()
    stack.jobs.enqueue_embedding(text.replace(code, "Fine"), source="a.md", provider="picky")
    (new,) = one(stack, "SELECT id FROM jobs WHERE state = 'queued'")
    execute(stack, new)
    assert stack.jobs.get(new).state is JobState.SUCCEEDED
    assert picky.asked.total() == asked + 1


def test_a_document_is_embedded_by_a_server_that_breaks_over_large_calls(
    stack: WorkerServices, picky: Picky
) -> None:
    picky.most_texts = 3
    text = "\n\n".join(f"# Part {n}\n\n{'word ' * 300}" for n in range(10))
    job = stack.jobs.enqueue_embedding(text, source="a.md", provider="picky", max_retries=1)
    for _ in range(2):
        one(stack, "UPDATE jobs SET not_before = NULL RETURNING id")
        execute(stack, job.id)
    assert stack.jobs.get(job.id).state is JobState.SUCCEEDED
