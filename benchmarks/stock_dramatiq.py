"""Stock dramatiq as its documentation shows it, for comparison. It imports nothing of ours."""

import os
from datetime import UTC, datetime
from functools import cache

import dramatiq
import openai
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

MODEL = "gpt-5-mini"

results = RedisBackend(url=os.environ["DRAMATIQ_REDIS"])
broker = RedisBroker(url=os.environ["DRAMATIQ_REDIS"])  # type: ignore[no-untyped-call]
broker.add_middleware(Results(backend=results))  # type: ignore[no-untyped-call]
dramatiq.set_broker(broker)


@cache
def client() -> openai.OpenAI:
    """One client a process."""
    return openai.OpenAI(max_retries=0)


@dramatiq.actor(store_results=True, max_retries=50, max_backoff=60_000)
def generate(prompt: str) -> list[str]:
    """Ask once. The answer, and when it came: dramatiq's results don't say it."""
    answer = client().chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": prompt}]
    )
    return [answer.choices[0].message.content or "", datetime.now(UTC).isoformat()]


@dramatiq.actor(store_results=True)
def nothing(text: str) -> list[str]:
    """Do nothing, which is what a task costs by itself."""
    return [text, datetime.now(UTC).isoformat()]
