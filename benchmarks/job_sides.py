"""The sides of `benchmarks.single_jobs`: how each enqueues a job and shows that it ended.

All use the Valkey of one deployment, each a database of its own.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from typing import Any

import psutil
from redis import Redis
from sqlalchemy import text

from benchmarks.deployment import MODEL, Deployment, start
from promptstack.config.celery import kombu_url
from promptstack.services.jobs.service import JobService

CELERY_RESULT = "celery-task-meta-"


@dataclass(frozen=True)
class Side:
    """One side, its worker running."""

    enqueue: Callable[[str], str]
    """Enqueues one text by itself; the key in Redis of its result."""
    ended: Callable[[Sequence[str]], list[datetime | None]]
    """When the jobs with these keys ended, by their results; None for an open one."""
    worker: psutil.Process


OpenSide = Callable[[Deployment, int], AbstractContextManager[Side]]
"""Starts a side on the servers, to run so many jobs at once."""


@contextmanager
def _ours(
    enqueue: Callable[[JobService, str], Any], deployed: Deployment, slots: int
) -> Iterator[Side]:
    variables = {**deployed.variables, "WORKER_CONCURRENCY": str(slots)}
    with (
        _worker("ours", ["promptstack.worker"], variables, deployed) as worker,
        _redis(deployed.stack.redis_url) as redis,
    ):
        yield Side(
            lambda text: f"{CELERY_RESULT}{enqueue(deployed.stack.jobs, text).id}",
            partial(_ended_in_celery, redis),
            worker,
        )


def _our_generation(jobs: JobService, text: str) -> Any:
    return jobs.enqueue_generation(text, provider="openai", model=MODEL)


def _our_demo(jobs: JobService, text: str) -> Any:
    return jobs.enqueue_generation(text, provider="demo")


def _our_embedding(jobs: JobService, text: str) -> Any:
    return jobs.enqueue_embedding(text, source=text, provider="local")


@contextmanager
def _celery(task: str, deployed: Deployment, slots: int) -> Iterator[Side]:
    url = _url(deployed, 1)
    variables = _rival_variables(deployed, RIVAL_REDIS=kombu_url(url))
    stock = _imported("benchmarks.stock_celery", variables)
    command = ["celery", "-A", stock.__name__, "worker", "--pool", "threads", "-n", "w@%h"]
    command += ["--concurrency", str(slots)]
    with _worker("celery", command, variables, deployed) as worker, _redis(url) as redis:
        send = getattr(stock, task).delay
        yield Side(
            lambda text: f"{CELERY_RESULT}{send(text).id}",
            partial(_ended_in_celery, redis),
            worker,
        )


@contextmanager
def _dramatiq(actor: str, deployed: Deployment, slots: int) -> Iterator[Side]:
    url = _url(deployed, 2)
    variables = _rival_variables(deployed, DRAMATIQ_REDIS=url)
    stock = _imported("benchmarks.stock_dramatiq", variables)
    command = ["dramatiq", stock.__name__, "--processes", "1", "--threads", str(slots)]
    with _worker("dramatiq", command, variables, deployed) as worker, _redis(url) as redis:
        send, key = getattr(stock, actor).send, stock.results.build_message_key
        yield Side(lambda text: str(key(send(text))), partial(_ended_in_dramatiq, redis), worker)


GENERATIONS: Mapping[str, OpenSide] = {
    "ours": partial(_ours, _our_generation),
    "stock": partial(_celery, "generate"),
    "dramatiq": partial(_dramatiq, "generate"),
}
"""Each job is one call of the simulator."""
TINY: Mapping[str, OpenSide] = {
    "ours": partial(_ours, _our_demo),
    "ours, embedding": partial(_ours, _our_embedding),
    "stock": partial(_celery, "nothing"),
    "dramatiq": partial(_dramatiq, "nothing"),
}
"""Ours: a generation that the demo provider answers at once, and a text that `local` embeds.
The others': a task that does nothing."""


@contextmanager
def _ours_while(before: str, after: str, deployed: Deployment, slots: int) -> Iterator[Side]:
    """Our demo side, after a change of the ledger that is undone afterwards."""
    _change(deployed, before)
    try:
        with _ours(_our_demo, deployed, slots) as side:
            yield side
    finally:
        _change(deployed, after)


def _change(deployed: Deployment, statements: str) -> None:
    with deployed.stack.ledger.transaction() as unit:
        unit.session.execute(text(statements))


WEBHOOKS: Mapping[str, OpenSide] = {
    "ours": TINY["ours"],
    "no trigger": partial(
        _ours_while,
        "ALTER TABLE jobs DISABLE TRIGGER jobs_tell_end",
        "ALTER TABLE jobs ENABLE TRIGGER jobs_tell_end",
    ),
    "others' webhooks": partial(
        _ours_while,
        "INSERT INTO users (id, email) VALUES (gen_random_uuid(), 'eve@example.org'); "
        "INSERT INTO webhook_endpoints (id, user_id, url, secret) "
        "SELECT gen_random_uuid(), users.id, 'https://example.org/', '' "
        "FROM users, generate_series(1, 20) WHERE email = 'eve@example.org'",
        "DELETE FROM users WHERE email = 'eve@example.org'",
    ),
}
"""What webhooks cost jobs that have none: with and without the trigger that notes ends, and where
other users have endpoints."""


def _ended_in_celery(redis: Redis, keys: Sequence[str]) -> list[datetime | None]:
    metas: Any = redis.mget(keys)
    read = [json.loads(meta) if meta else {} for meta in metas]
    if failed := {meta.get("status") for meta in read} & {"FAILURE", "REVOKED"}:
        raise RuntimeError(f"a job ended in {failed}")
    return [_time(meta["date_done"]) if meta.get("status") == "SUCCESS" else None for meta in read]


def _ended_in_dramatiq(redis: Redis, keys: Sequence[str]) -> list[datetime | None]:
    with redis.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.lindex(key, 0)
        results = pipeline.execute()
    read = [json.loads(result) if result else None for result in results]
    if failed := [result["exn"] for result in read if isinstance(result, dict)]:
        raise RuntimeError(f"a job ended in {failed[0]}")
    return [_time(result[1]) if result else None for result in read]


def _time(written: str) -> datetime:
    read = datetime.fromisoformat(written)
    return read if read.tzinfo else read.replace(tzinfo=UTC)


@contextmanager
def _worker(
    name: str, module: list[str], variables: dict[str, str], deployed: Deployment
) -> Iterator[psutil.Process]:
    with ExitStack() as processes:
        log = (deployed.folder / f"{name}.log").open("ab")
        process = start([sys.executable, "-m", *module], variables, processes, log)
        yield psutil.Process(process.pid)


def _url(deployed: Deployment, database: int) -> str:
    return deployed.stack.redis_url.replace("db=0", f"db={database}")


def _redis(url: str) -> Redis:
    return Redis.from_url(url, decode_responses=True)


def _rival_variables(deployed: Deployment, **redis: str) -> dict[str, str]:
    names = ("OPENAI_BASE_URL", "OPENAI_API_KEY")
    return {name: deployed.variables[name] for name in names} | redis


def _imported(module: str, variables: Mapping[str, str]) -> Any:
    """Import a rival's program, which finds its server in the environment as it is imported."""
    os.environ.update(variables)
    sys.modules.pop(module, None)
    return import_module(module)
