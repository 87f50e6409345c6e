"""A document whose chunks are longer than its model takes is cut until it takes them."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from uuid import UUID

import numpy as np
import pytest
import wordllama

from promptstack.config.providers import ModelFacts
from promptstack.repositories.models import JobState
from promptstack.repositories.runs.models import RunState
from promptstack.services.errors import InvalidInput
from promptstack.services.llm.base import Capability, EmbeddingLimits, EmbeddingResponse, LLMService
from promptstack.services.llm.errors import ContextTooLong
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.translation import from_status
from promptstack.services.sources.reading import Reading
from promptstack.tasks.worker_services import WorkerServices
from tests.http import problem, serve
from tests.integration.test_run_ledger import one
from tests.runs import work
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


class Short(LLMService):
    """Takes texts of 256 of its tokens, which are two characters each."""

    name = "short"
    is_limited = False
    default_models: ClassVar = {Capability.EMBEDDING: "short-1"}
    embedding_limits = EmbeddingLimits(items=64, bytes=1_000_000)
    form: ClassVar[str] = LLAMA_CPP
    limit: ClassVar[int] = LIMIT
    refused: ClassVar[Counter[str]] = Counter()
    paid: ClassVar[Counter[str]] = Counter()

    def tokens(self, text: str) -> int:
        return len(text) // 2

    async def _embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None
    ) -> EmbeddingResponse:
        for text in texts:
            given = self.tokens(text)
            if given > self.limit:
                self.refused["calls"] += 1
                numbers = {LLAMA_CPP: (given, self.limit), TEI: (self.limit, given)}
                said = self.form % numbers.get(self.form, ())
                status = 500 if self.form == LLAMA_CPP else 413
                raise from_status("short", status, key_setting="", codes=(), text=said, headers={})
        self.paid.update(texts)
        vectors = np.ones((len(texts), 3), dtype=np.float32)
        return EmbeddingResponse(vectors=vectors, model=model, input_tokens=len(texts))

    async def is_available(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def provider(stack: WorkerServices, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.factory.register("short", Short)
    for name, value in (("refused", Counter()), ("paid", Counter()), ("form", LLAMA_CPP)):
        monkeypatch.setattr(Short, name, value)


def embed(
    stack: WorkerServices, text: str = WORDS, source: str = "a.txt", chunk_tokens: int | None = None
) -> UUID:
    job = stack.jobs.enqueue_embedding(
        text, source=source, provider="short", chunk_tokens=chunk_tokens
    )
    stack.executor.run(job.id, lambda _: None)
    return job.id


@pytest.mark.parametrize("form", [LLAMA_CPP, TEI, OLLAMA])
@pytest.mark.parametrize("source", ["a.txt", "a.md"])
def test_a_document_is_cut_until_its_model_takes_it(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, form: str, source: str
) -> None:
    monkeypatch.setattr(Short, "form", form)
    # The first half is taken as it is, and paid for.
    text = f"{'a ' * 200}\n\n" * 3 + WORDS
    job = stack.jobs.get(embed(stack, text, source))
    assert (job.state, job.attempt, job.failures) == (JobState.SUCCEEDED, 1, 0)
    assert max(Short.paid.values()) == 1
    # A few to find the first text that is too long, and once more where some are denser.
    assert 0 < Short.refused["calls"] <= 16
    with stack.ledger.transaction() as unit:
        (document_id,) = one(stack, "SELECT id FROM documents")
        chunks = unit.documents.chunks(document_id)
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    assert set(Short.paid) == {chunk.text for chunk in chunks}
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
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(stack)
    before = Short.paid.total(), Short.refused["calls"]
    monkeypatch.setattr(stack.embedding, "_fitting", {})  # as in another worker
    embed(stack)
    assert (Short.paid.total(), Short.refused["calls"]) == before
    # Another document begins with what this worker has seen to be taken.
    monkeypatch.setattr(stack.embedding, "_fitting", {("short", "short-1"): 100})
    embed(stack, WORDS.replace("word", "term"), "b.txt")
    assert Short.refused["calls"] == before[1]


def test_a_text_that_no_cutting_makes_short_enough_says_what_to_do(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Short, "limit", 1)
    job = stack.jobs.get(embed(stack))
    assert (job.state, job.error_code) == (JobState.FAILED, "CONTEXT_TOO_LONG")
    assert "it takes 1)" in (job.error or "")
    assert "--chunk-tokens, CHUNK_TOKENS" in (job.error or "")
    assert "--ubatch-size" in (job.error or "")
    assert Short.refused["calls"] < 40


def test_a_limit_that_is_known_is_kept_from_the_first_call_on(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By tokens of ours: there are 4 characters in one, and 2 in one of the model's.
    monkeypatch.setattr(Short, "facts", (ModelFacts(provider="short", tokens_per_text=LIMIT // 3),))
    embed(stack)
    assert Short.refused["calls"] == 0
    # By the model's own, exactly.
    monkeypatch.setattr(
        Short,
        "facts",
        (ModelFacts(provider="short", tokens_per_text=LIMIT, tokenizer=TOKENIZER),),
    )
    own = wordllama.WordLlama.load(
        cache_dir=Path(wordllama.__file__).parent, disable_download=True
    ).tokenizer
    own.no_truncation()
    monkeypatch.setattr(Short, "tokens", lambda self, text: len(own.encode(text).ids))
    embed(stack, WORDS, "b.txt")
    assert Short.refused["calls"] == 0
    longest = max(Short.paid, key=len)
    assert LIMIT * 0.8 < len(own.encode(longest).ids) <= LIMIT


def test_a_tokenizer_that_is_none_is_a_setting_to_mend(
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for content, said in ((b"{}", "is no tokenizer.json"), (b"\xff", "can't be read")):
        tokenizer = tmp_path / said.replace("/", "")
        tokenizer.write_bytes(content)
        facts = (ModelFacts(provider="short", tokenizer=tokenizer),)
        monkeypatch.setattr(Short, "facts", facts)
        job = stack.jobs.get(embed(stack, source=said))
        assert job.error_code == "CONFIGURATION_ERROR"
        assert said in (job.error or "")


def test_chunk_tokens_of_one_document(stack: WorkerServices) -> None:
    embed(stack, chunk_tokens=100)
    assert Short.refused["calls"] == 0
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
    stack: WorkerServices, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text(WORDS)
    monkeypatch.setattr(
        Short,
        "facts",
        (ModelFacts(provider="short", tokens_per_text=LIMIT // 3),),
    )
    run = stack.runs.embed(tmp_path, provider="short", reading=Reading(chunk_tokens=512))
    assert work(stack, run.id).state is RunState.COMPLETED
    assert Short.refused["calls"] == 0


def test_of_a_run_a_text_that_is_too_long_fails_alone_and_says_what_it_may_be(
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
