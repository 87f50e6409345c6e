"""One program that embeds texts into pgvector, in a process of its own.

`python -m benchmarks.embedding_rivals NAME URL DATABASE_URL COUNT BATCH` prints JSON.
"""

import argparse
import asyncio
import io
import json
import sys
import time
from binascii import a2b_base64
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import numpy as np
import numpy.typing as npt
import openai
import orjson
import psutil
from psycopg2.extras import execute_values
from sqlalchemy import create_engine

from benchmarks.metering import Meter
from benchmarks.texts import make_texts

EMBEDDING_MODEL = "text-embedding-3-small"
DIMENSIONS = 1_536
IN_FLIGHT = 8
COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_END = b"\xff\xff"
TABLE = "CREATE TABLE rival (id integer PRIMARY KEY, embedding vector(1536))"
ROW = [
    ("fields", ">i2"),
    ("id_size", ">i4"),
    ("id", ">i4"),
    ("vector_size", ">i4"),
    ("dimensions", ">i2"),
    ("unused", ">i2"),
    ("vector", ">f4", (DIMENSIONS,)),
]

Batches = Sequence[tuple[int, list[str]]]
Work = Callable[[int, list[str]], Awaitable[None]]


async def script(url: str, batches: Batches, connection: Any) -> None:
    """What a user would write: the SDK's own objects, and `execute_values`."""
    client = openai.AsyncOpenAI(api_key="sk-x", base_url=url)

    async def work(first: int, texts: list[str]) -> None:
        response = await client.embeddings.create(model=EMBEDDING_MODEL, input=texts)
        rows = [(first + index, item.embedding) for index, item in enumerate(response.data)]
        with connection.cursor() as cursor:
            execute_values(cursor, "INSERT INTO rival VALUES %s", rows, template="(%s, %s::vector)")
        connection.commit()

    async with client:
        await _all(work, batches)


async def bound(url: str, batches: Batches, connection: Any) -> None:
    """As little as can be: aiohttp, base64, numpy and COPY BINARY."""
    loop = asyncio.get_running_loop()
    # One thread, as there is one connection.
    with ThreadPoolExecutor(1) as writer:
        async with aiohttp.ClientSession() as session:

            async def work(first: int, texts: list[str]) -> None:
                headers = {"Authorization": "Bearer sk-x", "Content-Type": "application/json"}
                async with session.post(
                    f"{url}/embeddings", data=orjson.dumps(_body(texts)), headers=headers
                ) as answer:
                    answer.raise_for_status()
                    content = await answer.read()
                await loop.run_in_executor(writer, _store, connection, first, content)

            await _all(work, batches)


async def raw(url: str, batches: Batches, connection: Any) -> None:
    """The same with the SDK, asked for its raw response."""
    client = openai.AsyncOpenAI(api_key="sk-x", base_url=url)

    loop = asyncio.get_running_loop()
    writer = ThreadPoolExecutor(1)

    async def work(first: int, texts: list[str]) -> None:
        answer = await client.embeddings.with_raw_response.create(
            model=EMBEDDING_MODEL, input=texts, encoding_format="base64"
        )
        await loop.run_in_executor(writer, _store, connection, first, answer.content)

    with writer:
        async with client:
            await _all(work, batches)


RIVALS = {"script": script, "bound": bound, "raw": raw}


def main() -> None:
    """Run one program and print what it cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RIVALS)
    parser.add_argument("url")
    parser.add_argument("database_url")
    parser.add_argument("count", type=int)
    parser.add_argument("batch", type=int)
    given = parser.parse_args()
    texts = make_texts(given.count)
    batches = [(at, texts[at : at + given.batch]) for at in range(0, given.count, given.batch)]
    connection: Any = create_engine(given.database_url).raw_connection()
    with connection.cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS vector; DROP TABLE IF EXISTS rival")
        cursor.execute(TABLE)
    connection.commit()
    with Meter(psutil.Process()) as meter:
        began = time.monotonic()
        asyncio.run(RIVALS[given.name](given.url, batches, connection))
        seconds = time.monotonic() - began
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM rival")
        stored = cursor.fetchone()[0]
    if stored != given.count:
        sys.exit(f"{stored} of {given.count} vectors were stored.")
    figures = {"seconds": seconds, "cpu_seconds": meter.cpu_seconds, "peak_rss": meter.peak_rss}
    sys.stdout.write(json.dumps(figures) + "\n")


async def _all(work: Work, batches: Batches) -> None:
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(first: int, texts: list[str]) -> None:
        async with gate:
            await work(first, texts)

    await asyncio.gather(*(one(first, texts) for first, texts in batches))


def _body(texts: list[str]) -> dict[str, Any]:
    return {"model": EMBEDDING_MODEL, "input": texts, "encoding_format": "base64"}


def _store(connection: Any, first: int, content: bytes) -> None:
    data = orjson.loads(content)["data"]
    vectors = np.stack([np.frombuffer(a2b_base64(item["embedding"]), dtype="<f4") for item in data])
    with connection.cursor() as cursor:
        cursor.copy_expert("COPY rival FROM STDIN (FORMAT binary)", _copy_rows(first, vectors))
    connection.commit()


def _copy_rows(first: int, vectors: npt.NDArray[np.float32]) -> io.BytesIO:
    rows = np.zeros(len(vectors), dtype=ROW)
    rows["fields"], rows["id_size"] = 2, 4
    rows["id"] = np.arange(first, first + len(vectors))
    rows["vector_size"], rows["dimensions"] = 4 + 4 * DIMENSIONS, DIMENSIONS
    rows["vector"] = vectors
    return io.BytesIO(COPY_HEADER + rows.tobytes() + COPY_END)


if __name__ == "__main__":
    main()
