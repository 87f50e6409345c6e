"""Stock Celery as its documentation shows it, for comparison. It imports nothing of ours."""

import os
from functools import cache

import openai
from celery import Celery

MODEL = "gpt-5-mini"

app = Celery("stock", broker=os.environ["RIVAL_REDIS"], backend=os.environ["RIVAL_REDIS"])
app.conf.task_acks_late = True
app.conf.worker_prefetch_multiplier = 1


@cache
def client() -> openai.OpenAI:
    """One client a process."""
    return openai.OpenAI(max_retries=0)


@app.task(
    autoretry_for=(openai.RateLimitError, openai.APIConnectionError, openai.InternalServerError),
    retry_backoff=True,
    retry_backoff_max=60,
    max_retries=50,
)
def generate(prompt: str, max_tokens: int | None = None) -> str:
    """Ask once."""
    answer = client().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": prompt}],
        max_completion_tokens=max_tokens or openai.omit,
    )
    return answer.choices[0].message.content or ""


@app.task
def nothing(text: str) -> str:
    """Do nothing, which is what a task costs by itself."""
    return text
