"""What the ledger keeps of answers in an odd form, and of those that refuse."""

import itertools
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from sqlalchemy import text
from typer.testing import CliRunner

from promptstack.api.cli.main import build
from promptstack.config.settings import Settings
from promptstack.repositories.models import Billing, JobState
from promptstack.repositories.run_models import RunState
from promptstack.services.jobs.views import AttemptView, JobView
from promptstack.services.validation.json_text import dump_json
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.odd_answers import EMBEDDED, OFTEN, VECTORS, WIRES, OddAnswer, odd_answers
from tests.odd_server import OddServer
from tests.runs import failures, work

PRICES = "".join(
    f'[[prices]]\nprovider = "{name}"\ninput_per_million = 100000\noutput_per_million = 1000000\n'
    for name in ("openai", "anthropic", "gemini")
)
"""Ten cents for each input token and a dollar for each output token."""
USAGE = {"prompt_tokens": 5, "completion_tokens": 2}


@pytest.fixture
def odd() -> Iterator[OddServer]:
    server = OddServer()
    with server.in_thread():
        yield server


@pytest.fixture
def stack(
    environment: dict[str, str], odd: OddServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerServices]:
    prices = tmp_path / "models.toml"
    prices.write_text(PRICES)
    for name in ("OPENAI", "ANTHROPIC", "GEMINI"):
        monkeypatch.setenv(f"{name}_BASE_URL", odd.url)
        monkeypatch.setenv(f"{name}_API_KEY", "sk-test")
    monkeypatch.setenv("MODELS_FILE", str(prices))
    with WorkerServices.open(Settings(_env_file=None)) as opened:
        yield opened


def chat(content: Any, **more: Any) -> OddAnswer:
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    return OddAnswer({"model": "m", "choices": [choice], "usage": USAGE, **more})


def ask(stack: WorkerServices, provider: str = "openai", **how: Any) -> tuple[JobView, AttemptView]:
    """Do a job here and now, once; the last of its calls."""
    job = stack.jobs.enqueue_generation(
        "Why?", provider=provider, model="m", **{"max_retries": 3, **how}
    )
    execute(stack, job.id)
    return stack.jobs.get(job.id), stack.jobs.get_attempts(job.id)[-1]


@pytest.mark.parametrize(
    ("usage", "note"),
    [
        (None, "usage is missing"),
        ("many", "usage is text"),
        ([], "usage is a list"),
        ({"prompt_tokens": "5 or so", "completion_tokens": 2}, "usage.prompt_tokens is text"),
        ({"prompt_tokens": -5, "completion_tokens": 2}, "usage.prompt_tokens is negative"),
        ({"prompt_tokens": 5, "completion_tokens": 10**30}, "usage.completion_tokens is too large"),
        ({**USAGE, "prompt_tokens_details": 7}, "usage.prompt_tokens_details is a number"),
    ],
    ids=lambda value: value if isinstance(value, str) and "is" in value else "",
)
def test_unreadable_token_counts_are_unknown_and_the_text_is_kept(
    stack: WorkerServices, odd: OddServer, usage: Any, note: str
) -> None:
    odd.answer = chat("Because.", usage=usage).wire()
    job, call = ask(stack)
    assert (job.state, odd.calls) == (JobState.SUCCEEDED, 1)
    assert job.result is not None
    assert job.result["text"] == "Because."
    assert (call.billing, call.cost_usd, call.note) == (Billing.BILLED, None, note)
    shown = CliRunner().invoke(build(), ["jobs", "show", str(job.id)])
    assert f"odd in the answer: {note}" in shown.output
    assert note.split(maxsplit=1)[0] in CliRunner().invoke(build(), ["attempts"]).output


def test_an_answer_in_order_has_no_note(stack: WorkerServices, odd: OddServer) -> None:
    odd.answer = chat("Because.").wire()
    _, call = ask(stack)
    assert (call.note, call.cost_usd) == (None, Decimal("2.5"))


REFUSALS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "chat": (
        "openai",
        {},
        {
            "choices": [{"message": {"content": None, "refusal": "No."}, "finish_reason": "stop"}],
            "usage": USAGE,
        },
    ),
    "responses": (
        "openai",
        {"options": {"api": "responses"}},
        {
            "output": [{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}],
            "usage": {"input_tokens": 5, "output_tokens": 2},
        },
    ),
    "anthropic": (
        "anthropic",
        {},
        {
            "content": [],
            "stop_reason": "refusal",
            "model": "m",
            "usage": {"input_tokens": 5, "output_tokens": 2},
        },
    ),
    "gemini": (
        "gemini",
        {},
        {
            "candidates": [{"finishReason": "SAFETY"}],
            "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2},
        },
    ),
    "gemini-prompt": (
        "gemini",
        {},
        {
            "promptFeedback": {"blockReason": "SAFETY"},
            "usageMetadata": {"promptTokenCount": 5, "candidatesTokenCount": 2},
        },
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_that_was_billed_has_its_tokens_and_its_cost(
    stack: WorkerServices, odd: OddServer, name: str
) -> None:
    provider, how, body = REFUSALS[name]
    odd.answer = OddAnswer(body).wire()
    job, call = ask(stack, provider, **how)
    assert (job.state, job.error_code) == (JobState.FAILED, "CONTENT_REFUSED")
    assert odd.calls == 1
    assert (call.input_tokens, call.output_tokens) == (5, 2)
    assert (call.billing, call.cost_usd) == (Billing.BILLED, Decimal("2.5"))


def test_a_refusal_counts_in_the_sums_of_its_run(stack: WorkerServices, odd: OddServer) -> None:
    odd.answer = OddAnswer(REFUSALS["chat"][2]).wire()
    run = stack.runs.generate(
        [{"prompt": "One?"}, {"prompt": "Two?"}], provider="openai", model="m"
    )
    done = work(stack, run.id)
    assert set(failures(stack, run).values()) == {"CONTENT_REFUSED"}
    assert (done.tokens, done.cost_usd) == (14, Decimal(5))


def test_results_of_unknown_tokens_stand_in_every_output(
    stack: WorkerServices, odd: OddServer, tmp_path: Path
) -> None:
    odd.answer = chat("Because.", usage=None).wire()
    run = stack.runs.generate(
        [{"prompt": "One?"}, {"prompt": "Two?"}], provider="openai", model="m"
    )
    done = work(stack, run.id)
    assert (done.succeeded, done.cost_usd) == (2, None)
    for ending in ("jsonl", "csv", "parquet"):
        output = tmp_path / f"answers.{ending}"
        exported = CliRunner().invoke(build(), ["runs", "export", str(run.id), "-o", str(output)])
        assert exported.exit_code == 0, exported.output
    table = pyarrow.parquet.read_table(tmp_path / "answers.parquet").to_pylist()
    assert [row["input_tokens"] for row in table] == [None, None]


@pytest.mark.parametrize("usage", [USAGE, None], ids=["counted", "not counted"])
def test_an_answer_without_text_is_retried_once(
    stack: WorkerServices, odd: OddServer, usage: Any
) -> None:
    odd.answer = chat({"not": "a text"}, usage=usage).wire()
    job, call = ask(stack)
    assert (job.state, job.error_code) == (JobState.QUEUED, "BAD_PROVIDER_RESPONSE")
    assert (call.billing, call.cost_usd) == (Billing.BILLED, Decimal("2.5") if usage else None)
    with stack.ledger.transaction() as unit:
        unit.session.execute(text("UPDATE jobs SET not_before = now()"))
    execute(stack, job.id)
    assert stack.jobs.get(job.id).state is JobState.FAILED
    assert odd.calls == 2


def test_a_run_asks_once_more_for_an_answer_without_a_text(
    stack: WorkerServices, odd: OddServer
) -> None:
    odd.answer = chat({"not": "a text"}).wire()
    run = stack.runs.generate([{"prompt": "One?"}], provider="openai", model="m", max_retries=3)
    work(stack, run.id)
    assert set(failures(stack, run).values()) == {"BAD_PROVIDER_RESPONSE"}
    assert odd.calls == 2


@pytest.mark.parametrize("name", ["chat", "chat-call", "responses", "anthropic", "gemini"])
def test_whatever_is_answered_the_job_ends_in_words_of_ours(
    name: str, stack: WorkerServices, odd: OddServer
) -> None:
    wire = WIRES[name]

    @given(odd_answers(wire.right))
    @settings(OFTEN, max_examples=OFTEN.max_examples // 10)
    def check(answer: OddAnswer) -> None:
        odd.answer, before = answer.wire(), odd.calls
        job, call = ask(stack, wire.provider, options=dict(wire.options), max_retries=0)
        assert odd.calls == before + 1
        assert job.error_code != "INTERNAL_ERROR"
        assert job.state in {JobState.SUCCEEDED, JobState.FAILED}
        assert call.billing is not Billing.UNKNOWN or job.state is JobState.FAILED
        if answer.spares(wire.paid):
            assert job.state is JobState.SUCCEEDED
        if job.state is JobState.SUCCEEDED and not answer.touched:
            assert call.note is None
        dump_json(job.model_dump(mode="json"))
        dump_json(call.model_dump(mode="json"))

    check()


@pytest.mark.parametrize("name", ["openai-vectors", "openai-vectors-in-order", "gemini-vectors"])
def test_whatever_is_answered_a_run_has_its_vectors_or_says_why_not(
    name: str, stack: WorkerServices, odd: OddServer
) -> None:
    wire = WIRES[name]
    models = itertools.count()

    @given(odd_answers(wire.right))
    @settings(OFTEN, max_examples=OFTEN.max_examples // 20)
    def check(answer: OddAnswer) -> None:
        odd.answer = answer.wire()
        # Its vectors may have any width, which a model has but one of.
        run = stack.runs.embed(
            EMBEDDED, provider=wire.provider, model=f"m-{next(models)}", max_retries=0
        )
        done = work(stack, run.id)
        assert done.state is RunState.COMPLETED
        assert "INTERNAL_ERROR" not in failures(stack, run).values()
        assert done.succeeded + done.failed == len(EMBEDDED)
        if answer.spares(wire.paid):
            assert done.succeeded == len(EMBEDDED)
            found = [one.vector for one in stack.run_results.produced(run.id)]
            np.testing.assert_array_equal(found, np.array(VECTORS, np.float32))

    check()
