"""One program that embeds texts into pgvector, in a process of its own.

`python -m benchmarks.embedding_rivals --help` says how; it prints JSON.
"""

import argparse
import asyncio
import io
import json
import os
import sys
import time
from binascii import a2b_base64
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
import openai
import orjson
import psutil
from psycopg2.extras import execute_values
from sqlalchemy import create_engine

from benchmarks.metering import Meter, high_water
from benchmarks.texts import make_texts

MODELS = {1_536: "text-embedding-3-small", 3_072: "text-embedding-3-large"}
"""By the size of their vectors."""
COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_END = b"\xff\xff"
Batches = Sequence[tuple[int, list[str]]]
Work = Callable[[int, list[str]], Awaitable[None]]


@dataclass(frozen=True)
class Task:
    """What there is to do, and with what."""

    url: str
    batches: Batches
    connection: Any
    dimensions: int
    in_flight: int

    @property
    def model(self) -> str:
        """The model that has vectors of this size."""
        return MODELS[self.dimensions]


async def script(task: Task) -> None:
    """What a user would write: the SDK's own objects, and `execute_values`."""
    client = openai.AsyncOpenAI(api_key="sk-x", base_url=task.url)

    async def work(first: int, texts: list[str]) -> None:
        response = await client.embeddings.create(model=task.model, input=texts)
        rows = [(first + index, item.embedding) for index, item in enumerate(response.data)]
        with task.connection.cursor() as cursor:
            execute_values(cursor, "INSERT INTO rival VALUES %s", rows, template="(%s, %s::vector)")
        task.connection.commit()

    async with client:
        await _all(work, task)


async def bare(task: Task) -> None:
    """As little as can be: aiohttp, base64, numpy and COPY BINARY."""
    loop = asyncio.get_running_loop()
    headers = {"Authorization": "Bearer sk-x", "Content-Type": "application/json"}
    # One thread, as there is one connection.
    with ThreadPoolExecutor(1) as writer:
        async with aiohttp.ClientSession() as session:

            async def work(first: int, texts: list[str]) -> None:
                body = {"model": task.model, "input": texts, "encoding_format": "base64"}
                async with session.post(
                    f"{task.url}/embeddings", data=orjson.dumps(body), headers=headers
                ) as answer:
                    answer.raise_for_status()
                    content = await answer.read()
                await loop.run_in_executor(writer, _store, task, first, content)

            await _all(work, task)


async def raw(task: Task) -> None:
    """The same with the SDK, asked for its raw response."""
    client = openai.AsyncOpenAI(api_key="sk-x", base_url=task.url)
    loop = asyncio.get_running_loop()
    writer = ThreadPoolExecutor(1)

    async def work(first: int, texts: list[str]) -> None:
        answer = await client.embeddings.with_raw_response.create(
            model=task.model, input=texts, encoding_format="base64"
        )
        await loop.run_in_executor(writer, _store, task, first, answer.content)

    with writer:
        async with client:
            await _all(work, task)


RIVALS = {"script": script, "bare": bare, "raw": raw}


def main() -> None:
    """Run one program and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RIVALS)
    parser.add_argument("url")
    parser.add_argument("database_url")
    parser.add_argument("--texts", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--dimensions", type=int, choices=MODELS, required=True)
    parser.add_argument("--in-flight", type=int, required=True)
    given = parser.parse_args()
    texts = make_texts(given.texts)
    batches = [(at, texts[at : at + given.batch]) for at in range(0, given.texts, given.batch)]
    connection: Any = create_engine(given.database_url).raw_connection()
    vector = f"vector({given.dimensions})"
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector; DROP TABLE IF EXISTS rival")
        cursor.execute(f"CREATE TABLE rival (id integer PRIMARY KEY, embedding {vector})")
    connection.commit()
    task = Task(given.url, batches, connection, given.dimensions, given.in_flight)
    with Meter(psutil.Process()) as meter:
        began = time.monotonic()
        asyncio.run(RIVALS[given.name](task))
        seconds = time.monotonic() - began
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM rival")
        stored = cursor.fetchone()[0]
    if stored != given.texts:
        sys.exit(f"{stored} of {given.texts} vectors were stored.")
    peak = high_water(os.getpid())
    figures = {"seconds": seconds, "cpu_seconds": meter.cpu_seconds, "peak_rss": peak}
    sys.stdout.write(json.dumps(figures) + "\n")


async def _all(work: Work, task: Task) -> None:
    gate = asyncio.Semaphore(task.in_flight)

    async def one(first: int, texts: list[str]) -> None:
        async with gate:
            await work(first, texts)

    await asyncio.gather(*(one(first, texts) for first, texts in task.batches))


def _store(task: Task, first: int, content: bytes) -> None:
    data = orjson.loads(content)["data"]
    vectors = np.stack([np.frombuffer(a2b_base64(item["embedding"]), dtype="<f4") for item in data])
    with task.connection.cursor() as cursor:
        cursor.copy_expert("COPY rival FROM STDIN (FORMAT binary)", _copy_rows(first, vectors))
    task.connection.commit()


def _copy_rows(first: int, vectors: npt.NDArray[np.float32]) -> io.BytesIO:
    count, dimensions = vectors.shape
    rows = np.zeros(
        count,
        dtype=[
            ("fields", ">i2"),
            ("id_size", ">i4"),
            ("id", ">i4"),
            ("vector_size", ">i4"),
            ("dimensions", ">i2"),
            ("unused", ">i2"),
            ("vector", ">f4", (dimensions,)),
        ],
    )
    rows["fields"], rows["id_size"] = 2, 4
    rows["id"] = np.arange(first, first + count)
    rows["vector_size"], rows["dimensions"] = 4 + 4 * dimensions, dimensions
    rows["vector"] = vectors
    return io.BytesIO(COPY_HEADER + rows.tobytes() + COPY_END)


if __name__ == "__main__":
    main()
