"""One program that asks for many generations, in a process of its own.

`python -m benchmarks.generation_rivals NAME URL COUNT IN_FLIGHT` prints JSON.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

import aiohttp
import openai
import orjson
import psutil

from benchmarks.deployment import MODEL
from benchmarks.metering import Meter

MAX_TOKENS = 64
PROMPT = "Question {number}: why is the sky blue, and not green?"

Ask = Callable[[str], Awaitable[str]]


async def default(url: str, count: int, in_flight: int) -> int:
    """What a user would write: the OpenAI SDK as it comes."""
    async with openai.AsyncOpenAI(api_key="sk-x", base_url=url) as client:
        return await _all(_asking(client), count, in_flight)


async def on_aiohttp(url: str, count: int, in_flight: int) -> int:
    """The same on the SDK's aiohttp transport."""
    transport = openai.DefaultAioHttpClient()
    async with openai.AsyncOpenAI(api_key="sk-x", base_url=url, http_client=transport) as client:
        return await _all(_asking(client), count, in_flight)


async def bare(url: str, count: int, in_flight: int) -> int:
    """As little as can be: aiohttp alone."""
    headers = {"Authorization": "Bearer sk-x", "Content-Type": "application/json"}
    # aiohttp's own limit is 100 connections.
    connector = aiohttp.TCPConnector(limit=in_flight)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def ask(prompt: str) -> str:
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": prompt}],
                "max_completion_tokens": MAX_TOKENS,
            }
            async with session.post(f"{url}/chat/completions", data=orjson.dumps(body)) as answer:
                answer.raise_for_status()
                said = orjson.loads(await answer.read())
            return str(said["choices"][0]["message"]["content"])

        return await _all(ask, count, in_flight)


RIVALS = {"script": default, "script on aiohttp": on_aiohttp, "bare aiohttp": bare}


def main() -> None:
    """Run one program and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RIVALS)
    parser.add_argument("url")
    parser.add_argument("count", type=int)
    parser.add_argument("in_flight", type=int)
    given = parser.parse_args()
    with Meter(psutil.Process()) as meter:
        began = time.monotonic()
        answered = asyncio.run(RIVALS[given.name](given.url, given.count, given.in_flight))
        seconds = time.monotonic() - began
    if answered != given.count:
        sys.exit(f"{answered} of {given.count} were answered.")
    figures = {"seconds": seconds, "cpu_seconds": meter.cpu_seconds, "peak_rss": meter.peak_rss}
    sys.stdout.write(json.dumps(figures) + "\n")


def _asking(client: openai.AsyncOpenAI) -> Ask:
    async def ask(prompt: str) -> str:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": prompt}],
            max_completion_tokens=MAX_TOKENS,
        )
        return answer.choices[0].message.content or ""

    return ask


async def _all(ask: Ask, count: int, in_flight: int) -> int:
    gate = asyncio.Semaphore(in_flight)

    async def one(number: int) -> str:
        async with gate:
            return await ask(PROMPT.format(number=number))

    answers = await asyncio.gather(*map(one, range(count)))
    return sum(map(bool, answers))


if __name__ == "__main__":
    main()
