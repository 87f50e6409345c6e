"""A document whose chunks are longer than its model takes is cut until it takes them."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import wordllama

from promptstack.config.providers import ModelFacts
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.errors import ContextTooLong
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.translation import from_status
from promptstack.services.sources.reading import Reading
from promptstack.tasks.worker_services import WorkerServices
from tests.fakes import FakeProvider
from tests.http import problem, serve
from tests.jobs import execute
from tests.runs import one, work
from tests.simulators import ForkedSimulator

LIMIT = 256
MODEL = "text-embedding-3-small"
WORDS = " ".join(f"word{n:03} of a sentence that goes on and on, number {n}." for n in range(300))
TOKENIZER = Path(wordllama.__file__).parent / "tokenizers" / "l2_supercat_tokenizer_config.json"
LLAMA_CPP = (
    '{"error":{"code":500,"message":"input (%d tokens) is too large to process. increase the '
    'physical batch size (current batch size: %d)","type":"server_error"}}'
)
OLLAMA = '{"error":"the input length exceeds the context length"}'
TEI = '{"error":"`inputs` must have less than %d tokens. Given: %d","error_type":"Validation"}'


class Short(FakeProvider):
    """Takes texts of 256 of its tokens, which are two characters each."""

    name = "short"

    def __init__(self) -> None:
        super().__init__()
        self.form = LLAMA_CPP
        self.limit = LIMIT
        self.count: Callable[[str], int] = lambda text: len(text) // 2
        self.refused = 0
        self.paid: Counter[str] = Counter()

    async def called(self, texts: Sequence[str], failures: int) -> None:
        for text in texts:
            given = self.count(text)
            if given > self.limit:
                self.refused += 1
                numbers = {LLAMA_CPP: (given, self.limit), TEI: (self.limit, given)}
                said = self.form % numbers.get(self.form, ())
                status = 500 if self.form == LLAMA_CPP else 413
                raise from_status("short", status, key_setting="", codes=(), text=said, headers={})
        self.paid.update(texts)

    def knows(self, **facts: Any) -> None:
        """Let this be what MODELS_FILE says of its model."""
        self.service.facts = (ModelFacts(provider=self.name, **facts),)


@pytest.fixture(autouse=True)
def short(stack: WorkerServices) -> Short:
    return Short().serve(stack)


def embed(
    stack: WorkerServices, text: str = WORDS, source: str = "a.txt", chunk_tokens: int | None = None
) -> UUID:
    job = stack.jobs.enqueue_embedding(
        text, source=source, provider="short", chunk_tokens=chunk_tokens
    )
    execute(stack, job.id)
    return job.id


@pytest.mark.parametrize("form", [LLAMA_CPP, TEI, OLLAMA])
@pytest.mark.parametrize("source", ["a.txt", "a.md"])
def test_a_document_is_cut_until_its_model_takes_it(
    stack: WorkerServices, short: Short, form: str, source: str
) -> None:
    short.form = form
    # The first half is taken as it is, and paid for.
    text = f"{'a ' * 200}\n\n" * 3 + WORDS
    job = stack.jobs.get(embed(stack, text, source))
    assert (job.state, job.attempt, job.failures) == (JobState.SUCCEEDED, 1, 0)
    assert max(short.paid.values()) == 1
    # A few to find the first text that is too long, and once more where some are denser.
    assert 0 < short.refused <= 16
    with stack.ledger.transaction() as unit:
        (document_id,) = one(stack, "SELECT id FROM documents")
        chunks = unit.documents.chunks(document_id)
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    assert set(short.paid) == {chunk.text for chunk in chunks}
    assert job.result is not None
    assert job.result["chunks"] == len(chunks)
    # Nothing of it is lost, and each chunk stands where it says.
    reached = 0
    for chunk in chunks:
        assert text[chunk.start :].startswith(chunk.text)
        assert not text[reached : chunk.start].strip()
        reached = max(reached, chunk.start + len(chunk.text))
    assert not text[reached:].strip()
    assert one(stack, "SELECT count(*) FROM reservations") == (0,)


def test_what_was_cut_smaller_is_neither_cut_nor_paid_for_again(
    stack: WorkerServices, short: Short
) -> None:
    embed(stack)
    before = short.paid.total(), short.refused
    stack.cutter.fitting.clear()  # as in another worker
    embed(stack)
    assert (short.paid.total(), short.refused) == before
    # Another document begins with what this worker has seen to be taken.
    stack.cutter.fitting["short", "short-1"] = 100
    embed(stack, WORDS.replace("word", "term"), "b.txt")
    assert short.refused == before[1]


def test_a_text_that_no_cutting_makes_short_enough_says_what_to_do(
    stack: WorkerServices, short: Short
) -> None:
    short.limit = 1
    job = stack.jobs.get(embed(stack))
    assert (job.state, job.error_code) == (JobState.FAILED, "CONTEXT_TOO_LONG")
    assert "it takes 1)" in (job.error or "")
    assert "--chunk-tokens, CHUNK_TOKENS" in (job.error or "")
    assert "--ubatch-size" in (job.error or "")
    assert short.refused < 40


def test_a_limit_that_is_known_is_kept_from_the_first_call_on(
    stack: WorkerServices, short: Short
) -> None:
    # By tokens of ours: there are 4 characters in one, and 2 in one of the model's.
    short.knows(tokens_per_text=LIMIT // 3)
    embed(stack)
    assert short.refused == 0
    # By the model's own, exactly.
    short.knows(tokens_per_text=LIMIT, tokenizer=TOKENIZER)
    own = wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__).parent, disable_download=True
    ).tokenizer
    own.no_truncation()
    short.count = lambda text: len(own.encode(text).ids)
    embed(stack, WORDS, "b.txt")
    assert short.refused == 0
    longest = max(short.paid, key=len)
    assert LIMIT * 0.8 < len(own.encode(longest).ids) <= LIMIT


def test_a_tokenizer_that_is_none_is_a_setting_to_mend(
    stack: WorkerServices, short: Short, tmp_path: Path
) -> None:
    for content, said in ((b"{}", "is no tokenizer.json"), (b"\xff", "can't be read")):
        tokenizer = tmp_path / said.replace("/", "")
        tokenizer.write_bytes(content)
        short.knows(tokenizer=tokenizer)
        job = stack.jobs.get(embed(stack, source=said))
        assert job.error_code == "CONFIGURATION_ERROR"
        assert said in (job.error or "")


def test_chunk_tokens_of_one_document(stack: WorkerServices, short: Short) -> None:
    embed(stack, chunk_tokens=100)
    assert short.refused == 0
    few = one(stack, "SELECT count(*) FROM chunks")[0]
    embed(stack, chunk_tokens=50)
    assert one(stack, "SELECT count(*) FROM chunks")[0] > 1.5 * few
    for wrong in (15, 8_001, True, "100", 1.5):
        with pytest.raises(InvalidInput, match="chunk_tokens"):
            embed(stack, chunk_tokens=wrong)  # type: ignore[arg-type]
        with serve(stack) as client:
            body = {"text": WORDS, "provider": "short", "chunk_tokens": wrong}
            problem(client.post("/api/v1/embeddings", json=body), 422, "INVALID_INPUT")


def test_chunks_of_a_run_are_no_longer_than_its_model_takes(
    stack: WorkerServices, short: Short, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(WORDS)
    short.knows(tokens_per_text=LIMIT // 3)
    run = stack.runs.embed(tmp_path, provider="short", reading=Reading(chunk_tokens=512))
    assert work(stack, run.id).state is RunState.COMPLETED
    assert short.refused == 0


def test_a_text_of_a_run_that_is_too_long_fails_alone_and_names_the_limit(
    stack: WorkerServices,
) -> None:
    texts = [f"text {n}" for n in range(30)] + ["x" * 1_000]
    done = work(stack, stack.runs.embed(texts, provider="short").id)
    assert (done.succeeded, done.failed) == (30, 1)
    (failed,) = stack.run_results.failed(done.id)
    assert failed.code == ContextTooLong.code
    assert "(500 tokens; it takes 256)" in failed.error


def test_the_limit_that_a_server_tells_of_one_text_is_learned() -> None:
    async def limit(url: str) -> int | None:
        service = OpenAIService(api_key="sk-test", base_url=url)
        for texts in (["x" * 40_000, "y"], ["x" * 40_000]):
            with pytest.raises(ContextTooLong):
                await service.embed(texts, MODEL, None)
        limits = service.limits_of(MODEL)
        await service.aclose()
        return limits.text_tokens

    with ForkedSimulator() as simulator:
        assert asyncio.run(limit(simulator.url)) == 8_192
