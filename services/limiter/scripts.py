"""The limiter's scripts and how they are called: calls at the same time share a round trip."""

import asyncio
from collections.abc import Mapping, Sequence
from hashlib import sha1
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoScriptError, RedisError

BATCH_SIZE = 200
"""Calls in one round trip at most: Redis does nothing else meanwhile."""
PARTS: Mapping[str, Sequence[str]] = {
    "acquire": ("bucket", "acquire"),
    "leave": ("bucket", "leave"),
    "look": ("bucket", "look"),
    "renew": ("renew",),
    "settle": ("bucket", "settlement", "settle"),
    "throttle": ("bucket", "settlement", "throttle"),
}
"""The files in the folder `lua` that make up each script, in order."""

Call = tuple[str, Sequence[Any], "asyncio.Future[Any]"]
"""The name of the script, its keys and arguments, and its future answer."""


def read_scripts() -> dict[str, str]:
    """The source of each script, by name."""
    folder = files("promptstack.services.limiter").joinpath("lua")
    return {
        name: "\n".join(
            folder.joinpath(f"{part}.lua").read_text(encoding="utf-8") for part in parts
        )
        for name, parts in PARTS.items()
    }


class ScriptCalls:
    """Calls scripts. While one round trip runs, further calls gather for the next.

    One shared connection takes a third of the CPU time of a connection for each call.
    """

    def __init__(self, redis: "Redis | RedisCluster", scripts: Mapping[str, str]) -> None:
        self._redis = redis
        self._scripts = scripts
        self._hashes = {
            name: sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in scripts.items()
        }
        self._waiting: list[Call] = []
        self._sender: asyncio.Task[None] | None = None

    async def call(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Call a script and return its answer. Raises redis-py's errors.

        The script may have run even where its caller was cancelled.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((script, (len(keys), *keys, *arguments), answer))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await answer

    async def _send(self) -> None:
        while self._waiting:
            calls, self._waiting = self._waiting[:BATCH_SIZE], self._waiting[BATCH_SIZE:]
            try:
                answers = await self._answers(calls)
            except (RedisError, OSError) as error:
                answers = [error] * len(calls)
            except BaseException:
                for *_, waiting in calls:
                    waiting.cancel()
                raise
            for (*_, waiting), answer in zip(calls, answers, strict=True):
                if waiting.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)

    async def _answers(self, calls: Sequence[Call]) -> list[Any]:
        answers = await self._exchange(calls)
        unknown = [at for at, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            # Redis has restarted or never had these scripts; it did nothing.
            for source in self._scripts.values():
                await self._redis.script_load(source)
            again = await self._exchange([calls[at] for at in unknown])
            for at, answer in zip(unknown, again, strict=True):
                answers[at] = answer
        return answers

    async def _exchange(self, calls: Sequence[Call]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for script, arguments, _ in calls:
                pipeline.execute_command("EVALSHA", self._hashes[script], *arguments)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            return answers
