"""Drives autobatcher: background responses that it polls, and batches that it collects."""

import asyncio
import os
from typing import Any

from autobatcher import BatchOpenAI
from seen import report

GPT = "gpt-5-mini"
EMBEDDING = "text-embedding-3-small"
SECONDS = 60


def client(**more: Any) -> BatchOpenAI:
    return BatchOpenAI(
        base_url=os.environ["OPENAI_BASE_URL"],
        api_key=os.environ["OPENAI_API_KEY"],
        batch_window_seconds=0.2,
        poll_interval_seconds=0.2,
        **more,
    )


async def ask(asker: BatchOpenAI, count: int) -> list[str]:
    asked = (
        asker.chat.completions.create(
            model=GPT, messages=[{"role": "user", "content": f"Say {number}."}]
        )
        for number in range(count)
    )
    return [answer.choices[0].message.content or "" for answer in await asyncio.gather(*asked)]


async def by_responses() -> Any:
    async with client() as asker:
        texts = await ask(asker, 3)
        answer = await asker.responses.create(model=GPT, input="Say 4.")
    return {"texts": texts, "response": answer.output_text}


async def by_batches() -> Any:
    events: list[str] = []
    async with client(
        completion_window="24h", batch_event_handler=lambda event: events.append(event["event"])
    ) as asker:
        texts = await ask(asker, 3)
        vectors = await asyncio.gather(
            *(asker.embeddings.create(model=EMBEDDING, input=text) for text in ("Hi", "Ho"))
        )
    return {
        "texts": texts,
        "dimensions": [len(one.data[0].embedding) for one in vectors],
        "events": sorted(set(events)),
    }


def flex() -> Any:
    """By `/responses`, in the background, with the flexible service tier."""
    return asyncio.run(asyncio.wait_for(by_responses(), SECONDS))


def batches() -> Any:
    """By `/batches`, of which it reads results while they run."""
    return asyncio.run(asyncio.wait_for(by_batches(), SECONDS))


if __name__ == "__main__":
    report("autobatcher", flex, batches)
