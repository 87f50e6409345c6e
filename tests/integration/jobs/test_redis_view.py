"""One class shows jobs and runs in Redis; what it doesn't show is left to the ledger."""

from dataclasses import replace
from typing import Any
from uuid import uuid4

from redis.backoff import NoBackoff
from redis.retry import Retry

from promptstack.config.names import PROGRESS_KEY, RUN_KEY
from promptstack.repositories.models import JobState
from promptstack.repositories.run_models import RunState
from promptstack.services.jobs.progress import Progress
from promptstack.services.jobs.redis_view import STALE_SECONDS, RedisView
from promptstack.services.runs.progress import RunSnapshot
from promptstack.tasks.composition import PromptStack

RUN = RunSnapshot(uuid4(), RunState.RUNNING, 9, 2, 1, 0, 3, 40, None, 1, 0.5, 2, 7, 1_000.0)
JOB = Progress(uuid4(), JobState.QUEUED, 1, 2, failures=1, error="None", retry_at=1.5)


def test_a_run_is_shown_by_its_newest_version_and_its_changes_are_a_stream(
    stack: PromptStack,
) -> None:
    view = RedisView(
        stack.redis, RunSnapshot, RUN_KEY, ttl_seconds=60, with_events=True, clock=lambda: 1_000.0
    )
    older, newer = replace(RUN, version=6, calls=1), replace(RUN, version=8, calls=4, cost_usd=0.5)
    for shown, expected in ((RUN, RUN), (older, RUN), (newer, newer), (RUN, newer)):
        view.write({RUN.run_id: shown})
        assert view.read([RUN.run_id, uuid4()]) == {RUN.run_id: expected}
    key = f"promptstack:run:{RUN.run_id}"
    assert stack.redis.hgetall(key) == {name: str(value) for name, value in vars(newer).items()}
    events: Any = stack.redis.xrange(f"{key}:events")
    assert [fields["version"] for _, fields in events] == ["7", "8"]
    assert 0 < stack.redis.ttl(key) <= 60
    assert 0 < stack.redis.ttl(f"{key}:events") <= 60


def test_a_job_is_shown_with_the_time_of_writing(stack: PromptStack) -> None:
    now = [5.0]
    view = RedisView(stack.redis, Progress, PROGRESS_KEY, ttl_seconds=60, clock=lambda: now[0])
    view.write({JOB.job_id: JOB})
    key = f"promptstack:progress:{JOB.job_id}"
    shown = {name: str(value) for name, value in vars(JOB).items()}
    assert stack.redis.hgetall(key) == {**shown, "updated_at": "5.0"}
    assert stack.redis.exists(f"{key}:events") == 0
    assert view.read([JOB.job_id]) == {JOB.job_id: JOB}
    now[0] += STALE_SECONDS + 0.1
    assert view.read([JOB.job_id]) == {}


def test_what_another_version_wrote_is_left_to_the_ledger(stack: PromptStack) -> None:
    view = RedisView(stack.redis, Progress, PROGRESS_KEY, ttl_seconds=60)
    view.write({JOB.job_id: JOB})
    key = PROGRESS_KEY.format(id=JOB.job_id)
    stack.redis.hset(key, "more", "1")
    assert view.read([JOB.job_id]) == {JOB.job_id: JOB}
    stack.redis.hset(key, "state", "thinking")
    assert view.read([JOB.job_id]) == {}
    stack.redis.hdel(key, "state", "updated_at")
    assert view.read([JOB.job_id]) == {}


def test_a_view_without_redis_shows_nothing_and_raises_nothing(stack: PromptStack) -> None:
    away = type(stack.redis)(host="127.0.0.1", port=1, retry=Retry(NoBackoff(), 0))
    view = RedisView(away, Progress, PROGRESS_KEY, ttl_seconds=60)
    view.write({JOB.job_id: JOB})
    assert view.read([JOB.job_id]) == {}
