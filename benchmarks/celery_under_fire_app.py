"""Stock Celery as its documentation shows it for tasks that must not be lost."""

import os
from functools import cache

import openai
from celery import Celery

app = Celery("stock", broker=os.environ["RIVAL_BROKER"], backend=os.environ["RIVAL_BACKEND"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    # An hour by default: what a killed worker held would come back after the end of the run.
    broker_transport_options={"visibility_timeout": 30},
    result_extended=False,
    worker_log_format="[%(process)d] %(message)s",
)


@cache
def client() -> openai.OpenAI:
    """One client a process."""
    return openai.OpenAI(max_retries=0, timeout=10.0)


@app.task(
    autoretry_for=(openai.RateLimitError, openai.APIConnectionError, openai.InternalServerError),
    retry_backoff=True,
    retry_backoff_max=5,
    max_retries=10,
)
def generate(prompt: str, model: str) -> str:
    """Ask once."""
    answer = client().chat.completions.create(
        model=model, messages=[{"role": "user", "content": prompt}]
    )
    return answer.choices[0].message.content or ""
