"""Jobs under limits, on real wires: fallbacks, circuits, spent quota, calls that are too large."""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import event
from sqlalchemy import text as sql

from promptstack.config.errors import ConfigurationError
from promptstack.config.models_file import ModelsFile
from promptstack.config.names import RATE_LIMIT_WAIT, Queue
from promptstack.config.settings import Settings
from promptstack.repositories.models import JobState
from promptstack.services.errors import InvalidInput, UnknownModel
from promptstack.services.jobs.views import AttemptView, JobView
from promptstack.services.llm.answers import LLMResponse
from promptstack.services.llm.demo import DemoService
from promptstack.services.llm.errors import RateLimited
from promptstack.services.llm.openai import OpenAIService
from promptstack.services.llm.requests import Fallback, GenerationRequest
from promptstack.services.maintenance.rate_limited_jobs import RateLimitedJobs
from promptstack.services.sharing.turns import NOBODY
from promptstack.simulator.process import MODELS, SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.jobs import execute
from tests.processes import Process, wait_until
from tests.runs import in_ledger, prompts
from tests.simulators import ForkedSimulator

API_KEY = "sk-never-to-be-seen"
BUSY = {"kind": "status", "status": 503}
SPENT = {"kind": "status", "status": 429, "code": "insufficient_quota"}
TOO_LARGE = {"kind": "status", "status": 400, "code": "max_tokens_per_request"}


@pytest.fixture(scope="module")
def simulators() -> Iterator[tuple[SimulatorProcess, SimulatorProcess]]:
    with ForkedSimulator() as one, ForkedSimulator() as two:
        yield one, two


@pytest.fixture
def first(simulators: tuple[SimulatorProcess, SimulatorProcess]) -> SimulatorProcess:
    simulators[0].reset()
    return simulators[0]


@pytest.fixture
def second(simulators: tuple[SimulatorProcess, SimulatorProcess]) -> SimulatorProcess:
    simulators[1].reset()
    return simulators[1]


Open = Callable[..., WorkerServices]


@pytest.fixture
def open_stack(
    environment: dict[str, str], first: SimulatorProcess, second: SimulatorProcess, tmp_path: Path
) -> Iterator[Open]:
    """Opens a worker's stack with `openai` at the first simulator and `backup` at the second."""
    opened = []

    def open_it(models: str = "", **changes: object) -> WorkerServices:
        file = tmp_path / "models.toml"
        file.write_text(MODELS.read_text() + models)
        told = {"openai_base_url": first.url, "openai_api_key": API_KEY, "models_file": file}
        stack = WorkerServices.open(Settings(_env_file=None, **{**told, **changes}))  # type: ignore[arg-type]

        class Backup(OpenAIService):
            """Another account, somewhere else."""

            name = "backup"

            def __init__(self) -> None:
                super().__init__(api_key="sk-backup", base_url=second.url)

        stack.factory.register("backup", Backup)
        opened.append(stack)
        return stack

    yield open_it
    for stack in opened:
        stack.close()


def run(stack: WorkerServices, job: JobView) -> JobView:
    """Do a job here and now."""
    execute(stack, job.id)
    return stack.jobs.get(job.id)


def attempts(stack: WorkerServices, job: JobView) -> list[AttemptView]:
    return stack.jobs.get_attempts(job.id)


def generate(stack: WorkerServices, *backups: str, **how: Any) -> JobView:
    fallbacks = [Fallback(provider=name) for name in backups]
    return stack.jobs.enqueue_generation(
        "Why?", provider="openai", fallbacks=fallbacks, **{"max_retries": 0, **how}
    )


# Fallbacks


@pytest.mark.parametrize("fault", [BUSY, {"kind": "reset"}, SPENT], ids=["busy", "reset", "quota"])
def test_a_fallback_answers_where_the_provider_cannot(
    open_stack: Open, first: SimulatorProcess, second: SimulatorProcess, fault: dict[str, Any]
) -> None:
    stack = open_stack()
    first.control(fault)
    job = run(stack, generate(stack, "backup"))
    assert (job.state, job.failures, job.attempt) == (JobState.SUCCEEDED, 0, 1)
    shown = [(call.provider, call.state, call.call) for call in attempts(stack, job)]
    assert shown == [("openai", "failed", 0), ("backup", "succeeded", 1)]
    assert (second.stats()["requests"], job.provider) == (1, "openai")


def test_fallbacks_are_asked_in_their_order_and_the_job_fails_with_the_last(
    open_stack: Open, first: SimulatorProcess, second: SimulatorProcess
) -> None:
    stack = open_stack()
    first.control(BUSY, BUSY)
    second.control({"kind": "status", "status": 400})
    fallbacks = [Fallback(provider="openai", model="gpt-5-nano"), Fallback(provider="backup")]
    job = stack.jobs.enqueue_generation(
        "Why?", provider="openai", fallbacks=fallbacks, max_retries=0
    )
    ended = run(stack, job)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "INVALID_PROVIDER_REQUEST")
    asked = [(call.provider, call.model) for call in attempts(stack, job)]
    assert asked == [
        ("openai", "gpt-5-mini"),
        ("openai", "gpt-5-nano"),
        ("backup", "gpt-5-mini"),
    ]


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_request_that_is_wrong_is_wrong_everywhere(
    open_stack: Open, first: SimulatorProcess, second: SimulatorProcess, status: int
) -> None:
    stack = open_stack()
    first.control({"kind": "status", "status": status})
    assert run(stack, generate(stack, "backup")).state is JobState.FAILED
    assert second.stats()["requests"] == 0


def test_a_fallback_is_checked_when_the_job_is_enqueued(open_stack: Open) -> None:
    stack = open_stack()
    for wrong in (
        Fallback(provider="nobody"),
        Fallback(provider="local"),
        Fallback(provider="demo", model="unknown"),
        Fallback(provider="demo", options={"unknown": 1}),
        Fallback(provider="openai", options={"messages": []}),
    ):
        with pytest.raises((InvalidInput, UnknownModel)):
            stack.jobs.enqueue_generation("x", provider="openai", fallbacks=[wrong])
    with pytest.raises(InvalidInput, match="fallbacks"):
        generate(stack, *(["backup"] * 6))
    assert stack.jobs.get_many() == []


def test_options_of_one_provider_do_not_go_to_another(
    open_stack: Open, first: SimulatorProcess
) -> None:
    stack = open_stack()
    first.control(BUSY)
    ended = run(
        stack,
        stack.jobs.enqueue_generation(
            "x",
            provider="openai",
            options={"reasoning_effort": "low"},
            fallbacks=[Fallback(provider="demo")],
        ),
    )
    assert ended.state is JobState.SUCCEEDED
    assert attempts(stack, ended)[-1].provider == "demo"


# The circuit


def test_an_open_circuit_spares_the_provider_and_costs_jobs_nothing(
    open_stack: Open, first: SimulatorProcess, second: SimulatorProcess
) -> None:
    stack = open_stack()
    first.control(*[BUSY] * 5)
    for _ in range(5):
        assert run(stack, generate(stack)).error_code == "PROVIDER_OVERLOADED"
    waiting = run(stack, generate(stack))
    assert (waiting.state, waiting.error_code) == (JobState.QUEUED, "CIRCUIT_OPEN")
    assert (waiting.failures, attempts(stack, waiting)) == (0, [])
    assert waiting.not_before is not None
    helped = run(stack, generate(stack, "backup"))
    assert [call.provider for call in attempts(stack, helped)] == ["backup"]
    assert (first.stats()["requests"], second.stats()["requests"]) == (5, 1)
    # Another model of the same provider has a circuit of its own.
    other = run(stack, stack.jobs.enqueue_generation("x", provider="openai", model="gpt-5-nano"))
    assert other.state is JobState.SUCCEEDED


# Spent quota


def test_spent_quota_stops_all_work_of_the_account_at_once(
    open_stack: Open, first: SimulatorProcess
) -> None:
    stack = open_stack()
    first.control(SPENT)
    met = run(stack, generate(stack, max_retries=3))
    assert (met.state, met.error_code, met.failures) == (JobState.FAILED, "QUOTA_EXHAUSTED", 0)
    assert "quota" in (met.error or "")
    # The others, of any model, do not even ask.
    for model in ("gpt-5-mini", "gpt-5-nano"):
        spared = run(stack, stack.jobs.enqueue_generation("x", provider="openai", model=model))
        assert (spared.state, spared.error_code) == (JobState.FAILED, "QUOTA_EXHAUSTED")
        assert (spared.failures, attempts(stack, spared)) == (0, [])
        assert "top it up" in (spared.error or "")
    assert first.stats()["requests"] == 1


# Waiting for a turn


LIMITED = """
[[limits]]
provider = "openai"
model = "gpt-*"
requests_per_minute = 6
"""


def test_a_job_that_must_wait_long_returns_to_the_queue_until_the_limit_has_room(
    open_stack: Open, first: SimulatorProcess
) -> None:
    stack = open_stack(LIMITED)
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED
    waiting = run(stack, generate(stack))
    assert (waiting.state, waiting.error_code) == (JobState.QUEUED, RATE_LIMIT_WAIT)
    assert (waiting.failures, attempts(stack, waiting)) == (0, [])
    assert stack.rate_limited_jobs.call_back() == 0
    assert stack.jobs.get(waiting.id).not_before == waiting.not_before
    # Somebody raises the limit.
    with WorkerServices.open(stack.settings.model_copy(update={"models_file": None})) as raised:
        assert raised.rate_limited_jobs.call_back() == 1
    due = stack.jobs.get(waiting.id).not_before
    assert due is not None
    assert waiting.not_before is not None
    assert due < waiting.not_before
    assert first.stats()["requests"] == 1


def test_a_limiter_that_answers_slowly_is_asked_for_the_next_model_in_the_next_round(
    open_stack: Open,
) -> None:
    """Messages wait for the end of a round."""
    stack = open_stack(LIMITED)
    for model in ("gpt-5-mini", "gpt-5-nano"):
        for _ in range(2):
            run(stack, stack.jobs.enqueue_generation("x", provider="openai", model=model))
    seconds = itertools.count(0.0, 1.5)
    with WorkerServices.open(stack.settings.model_copy(update={"models_file": None})) as raised:
        waiting = RateLimitedJobs(
            raised.ledger,
            raised.providers,
            raised.limited_calls,
            raised.loop,
            timer=lambda: next(seconds),
        )
        assert [waiting.call_back() for _ in range(3)] == [1, 1, 0]


WAITING = """
INSERT INTO jobs (id, kind, state, user_id, provider, model, request, request_hash, max_retries,
                  expires_at, not_before, error_code)
SELECT gen_random_uuid(), 'generation', 'queued', :user, 'demo', 'demo-1', '{}', '', 3,
       now() + interval '1 day', now() + interval '1 hour' + n * :later * interval '1 second',
       'RATE_LIMIT_WAIT'
FROM generate_series(1, :count) AS n
"""


def add_waiting(stack: WorkerServices, name: str, count: int, later: int) -> UUID:
    with stack.ledger.transaction() as unit:
        user: UUID = unit.users.create(email=f"{name}@example.com").id
        unit.session.execute(sql(WAITING), {"user": user, "count": count, "later": later})
    return user


def called_back(stack: WorkerServices) -> dict[UUID, int]:
    with stack.ledger.transaction() as unit:
        rows = unit.session.execute(
            sql("SELECT user_id, count(*) FROM jobs WHERE not_before <= now() GROUP BY user_id")
        )
        return {row[0]: row[1] for row in rows}


class Room:
    """A limiter with room for so many."""

    def __init__(self, room: int) -> None:
        self._room = room

    async def room(self, *_: object) -> int:
        return self._room


def callers(stack: WorkerServices, room: int) -> RateLimitedJobs:
    calls: Any = Room(room)
    return RateLimitedJobs(stack.ledger, stack.providers, calls, stack.loop)


def test_of_jobs_that_wait_for_a_limit_users_have_equal_parts(stack: WorkerServices) -> None:
    many = add_waiting(stack, "many", 10_000, 0)
    some, single = add_waiting(stack, "some", 30, 7), add_waiting(stack, "single", 1, 7)
    assert callers(stack, 21).call_back() == 21
    assert called_back(stack) == {many: 10, some: 10, single: 1}
    # Who has no more leaves the rest to others.
    assert callers(stack, 100).call_back() == 100
    assert called_back(stack) == {many: 90, some: 30, single: 1}


def test_whose_jobs_are_called_back_is_found_without_reading_those_that_wait(
    stack: WorkerServices,
) -> None:
    add_waiting(stack, "many", 50_000, 0)
    add_waiting(stack, "others", 50_000, 0)
    with stack.ledger.transaction() as unit:
        unit.session.execute(sql("ANALYZE jobs"))
    plans: list[str] = []

    def explain(_c: object, cursor: Any, statement: str, given: Any, *_: object) -> None:
        if "RECURSIVE" in statement or "LATERAL" in statement:
            cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + statement, given)
            plans.append(json.dumps(cursor.fetchone()[0]))

    event.listen(stack.ledger.engine, "before_cursor_execute", explain)
    try:
        assert callers(stack, 20).call_back() == 20
    finally:
        event.remove(stack.ledger.engine, "before_cursor_execute", explain)
    assert len(plans) >= 2
    for plan in plans:
        assert "jobs_waiting" in plan
        rows = [float(one) for one in re.findall(r'"Actual Rows": ([\d.]+)', plan)]
        assert max(rows) <= 20, plan


def test_limits_are_kept_by_model(open_stack: Open) -> None:
    stack = open_stack(LIMITED)
    for model in ("gpt-5-mini", "gpt-5-nano"):
        job = stack.jobs.enqueue_generation("x", provider="openai", model=model)
        assert run(stack, job).state is JobState.SUCCEEDED


def test_a_bulk_job_gives_way_in_its_queue_and_at_the_limit(open_stack: Open) -> None:
    stack = open_stack()
    bulk = generate(stack, bulk=True)
    document = stack.jobs.enqueue_embedding("text", source="a", provider="openai", bulk=True)
    people = generate(stack)
    queues = (Queue.GENERATION_BULK, Queue.EMBEDDINGS_BULK, Queue.GENERATION)
    assert [stack.publisher.waiting(queue) for queue in queues] == [1, 1, 1]
    for job in (bulk, document, people):
        with stack.ledger.transaction() as unit:
            claim = unit.steps.claim(job.id, stack.worker_id)
            assert claim is not None
            assert claim.is_bulk is (job is not people)


def test_workers_take_bulk_and_interactive_work(
    stack: WorkerServices, start_worker: Callable[..., Process]
) -> None:
    start_worker()
    jobs = [stack.jobs.enqueue_generation("x", bulk=bulk) for bulk in (True, False)]
    jobs.append(stack.jobs.enqueue_embedding("text", source="a", bulk=True))
    for job in jobs:
        wait_until(lambda job=job: stack.jobs.get(job.id).state.is_final, "the end of a job")  # type: ignore[misc]
    assert [stack.jobs.get(job.id).state for job in jobs] == [JobState.SUCCEEDED] * 3


# Calls that are too large


def test_a_generation_over_the_limit_is_refused_and_not_waited_for(open_stack: Open) -> None:
    stack = open_stack('[[limits]]\nprovider = "openai"\ntokens_per_minute = 100\n')
    job = stack.jobs.enqueue_generation("x" * 1_000, provider="openai")
    ended = run(stack, job)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "REQUEST_OVER_LIMIT")
    assert "100 tokens a minute" in (ended.error or "")
    assert attempts(stack, ended) == []


def test_passages_over_a_limit_are_halved_until_they_fit(
    open_stack: Open, first: SimulatorProcess
) -> None:
    stack = open_stack(
        '[[limits]]\nprovider = "openai"\ntokens_per_minute = 1000\nburst_seconds = 60\n'
    )
    text = "\n\n".join(f"Passage {n} " + "x " * 450 for n in range(6))
    job = stack.jobs.enqueue_embedding(text, source="a", provider="openai")
    waiting = run(stack, job)
    assert (waiting.error_code, waiting.current, waiting.total) == (RATE_LIMIT_WAIT, 3, 6)
    stack.redis.flushdb()
    with stack.ledger.transaction() as unit:
        unit.outbox.call_back("openai", waiting.model, {NOBODY: 1})
    assert run(stack, job).state is JobState.SUCCEEDED
    assert [call.items for call in attempts(stack, job)] == [3, 3]
    assert set(first.ledger().values()) == {1}


def test_passages_that_the_provider_finds_too_large_are_halved(
    open_stack: Open, first: SimulatorProcess
) -> None:
    stack = open_stack()
    text = "\n\n".join(f"Passage {n} " + "x " * 450 for n in range(4))
    first.control(TOO_LARGE, TOO_LARGE)
    ended = run(stack, stack.jobs.enqueue_embedding(text, source="a", provider="openai"))
    assert ended.state is JobState.SUCCEEDED
    assert [(call.state, call.items) for call in attempts(stack, ended)] == [
        ("failed", 4),
        ("failed", 2),
        ("succeeded", 1),
        ("succeeded", 1),
        ("succeeded", 2),
    ]
    assert set(first.ledger().values()) == {1}
    assert ended.result is not None
    assert (ended.result["chunks"], ended.result["embedded"]) == (4, 4)


# Refusals that are about one call, or that name no time anybody means


ROOMY = {"requests_per_minute": 6_000, "tokens_per_minute": 10**9}
STRAY = {"kind": "stray", "retry_after": 60}


def test_a_429_that_its_headers_contradict_holds_up_no_other_job(
    open_stack: Open, first: SimulatorProcess
) -> None:
    stack = open_stack()
    first.set_limits(**ROOMY)
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED
    first.control(STRAY)
    refused = run(stack, generate(stack))
    told = (refused.state, refused.error_code, refused.failures)
    assert told == (JobState.QUEUED, "RATE_LIMITED", 0)
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED


def test_a_429_that_its_headers_contradict_delays_no_other_item_of_a_run(
    open_stack: Open, first: SimulatorProcess
) -> None:
    stack = open_stack()
    first.set_limits(**ROOMY)
    assert run(stack, generate(stack)).state is JobState.SUCCEEDED
    first.control(STRAY)
    accepted = stack.runs.generate(prompts(12), provider="openai", in_flight=1)
    stack.run_lifecycle.run_once()
    shard = in_ledger(stack, f"SELECT id FROM jobs WHERE run_id = '{accepted.id}'")
    execute(stack, shard)
    standing = stack.runs.get(accepted.id)
    assert (standing.succeeded, standing.failed) == (11, 0)
    [waits] = stack.rate_limited_jobs.who(accepted.id)
    assert (waits.jobs, waits.error_code) == (1, "TRIED_LATER")
    assert "asks us to slow down (status 429" in (waits.error or "")


@pytest.mark.parametrize(
    ("retry_after", "least", "most"),
    [(43_200, 600, 620), ("1900000000", 0, 20), ("inf", 0, 20), ("-inf", 0, 20)],
    ids=["half a day", "a point in time", "infinite", "the past"],
)
def test_no_provider_makes_a_job_wait_for_longer_than_we_let_it(
    open_stack: Open, first: SimulatorProcess, retry_after: float | str, least: float, most: float
) -> None:
    stack = open_stack(retry_backoff_seconds=0.1)
    first.control(*[{"kind": "status", "status": 429, "retry_after": retry_after}] * 3)
    refused = run(stack, generate(stack))
    assert (refused.state, refused.error_code) == (JobState.QUEUED, "RATE_LIMITED")
    told_at = attempts(stack, refused)[-1].finished_at
    assert refused.not_before is not None
    assert told_at is not None
    assert least <= (refused.not_before - told_at).total_seconds() <= most


def test_a_provider_that_is_not_ours_is_held_to_the_same(open_stack: Open) -> None:
    stack = open_stack()

    class Slow(DemoService):
        """Asks to wait, however long."""

        name = "slow"

        async def _generate(
            self, request: GenerationRequest, user_id: UUID | None, failures: int
        ) -> LLMResponse:
            raise RateLimited("Slow down.", retry_after=math.inf)

    stack.factory.register("slow", Slow)
    refused = run(stack, stack.jobs.enqueue_generation("x", provider="slow"))
    assert refused.not_before is not None
    assert (refused.not_before - datetime.now(UTC)).total_seconds() <= 5


# What is in Redis


def test_no_key_is_in_redis(open_stack: Open) -> None:
    stack = open_stack()
    run(stack, generate(stack))
    with Redis.from_url(stack.redis_url, decode_responses=True) as redis:
        names = list(redis.scan_iter("promptstack:limiter:*"))
        assert names
        held = [str(redis.hgetall(name)) for name in names if redis.type(name) == "hash"]
    assert API_KEY not in " ".join(names + held)


def test_without_redis_calls_go_on_at_this_workers_share(
    open_stack: Open, first: SimulatorProcess
) -> None:
    stack = open_stack(
        '[[limits]]\nprovider = "openai"\nrequests_per_minute = 300\n',
        redis_url="redis://127.0.0.1:1/0",
        celery_broker_url="redis://127.0.0.1:1/0",
    )
    stack.heartbeat.beat()
    jobs = [run(stack, generate(stack)) for _ in range(5)]
    assert {job.state for job in jobs} == {JobState.SUCCEEDED}
    began = [call.started_at for job in jobs for call in attempts(stack, job)]
    # Five a second, with nothing saved up.
    assert (began[-1] - began[0]).total_seconds() >= 0.6


def test_the_models_file_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    file = tmp_path / "models.toml"
    for text, problem in (
        ("[[limits]]\nprovider = ", "cannot be read"),
        ("[[limits]]\nmodel = 'x'", "provider"),
        ("[[limits]]\nprovider = 'x'\nrequests_per_minute = 0", "requests_per_minute"),
        ("[[limits]]\nprovider = 'x'\nrequests = 1", "requests"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigurationError, match=problem):
            ModelsFile.read(file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        ModelsFile.read(tmp_path / "missing")
    assert ModelsFile.read(None).limits == ()


# A fallback that can't help


ONE_A_MINUTE = '[[limits]]\nprovider = "backup"\nrequests_per_minute = 1\n'


def test_waiting_for_a_fallback_does_not_make_retries_of_the_first_provider_free(
    open_stack: Open, first: SimulatorProcess
) -> None:
    """Calls that time out may each be billed: a job makes no more of them than its retries."""
    stack = open_stack(ONE_A_MINUTE)
    first.control(*[{"kind": "reset"}] * 3)
    assert run(stack, generate(stack, "backup")).state is JobState.SUCCEEDED
    job = run(stack, generate(stack, "backup", max_retries=1))
    told = (job.state, job.error_code, job.failures)
    assert told == (JobState.QUEUED, "PROVIDER_UNREACHABLE", 1)
    with stack.ledger.transaction() as unit:
        unit.session.execute(sql("UPDATE jobs SET not_before = now()"))
    job = run(stack, job)
    assert (job.state, job.failures) == (JobState.FAILED, 2)


def test_a_fallback_without_quota_takes_no_retry_from_the_first(
    open_stack: Open, first: SimulatorProcess, second: SimulatorProcess
) -> None:
    stack = open_stack()
    first.control(BUSY)
    second.control(SPENT)
    job = run(stack, generate(stack, "backup", max_retries=1))
    assert (job.state, job.error_code) == (JobState.QUEUED, "PROVIDER_OVERLOADED")


def test_the_spent_quota_of_one_model_leaves_the_others_to_their_jobs(
    open_stack: Open, first: SimulatorProcess
) -> None:
    """Gemini counts a day's requests by model."""
    stack = open_stack(gemini_api_key=API_KEY, gemini_base_url=first.origin)
    first.control(SPENT)
    other = [Fallback(provider="gemini", model="gemini-2.5-pro")]
    helped = stack.jobs.enqueue_generation("Why?", provider="gemini", fallbacks=other)
    assert run(stack, helped).state is JobState.SUCCEEDED
    spared = run(stack, stack.jobs.enqueue_generation("Why?", provider="gemini"))
    assert (spared.state, spared.error_code) == (JobState.FAILED, "QUOTA_EXHAUSTED")
    assert attempts(stack, spared) == []
