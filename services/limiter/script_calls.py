"""Calls of one script in Redis: those that come at once travel together."""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, RedisError

TOGETHER = 200
"""Calls in one exchange at most, as Redis does nothing else meanwhile."""

Call = tuple[Sequence[Any], "asyncio.Future[Any]"]


class ScriptCalls:
    """Calls a script. While an exchange with Redis is under way, the next calls gather.

    One connection for all costs a third of the processor time of a connection for each.
    """

    def __init__(self, redis: "Redis", script: str) -> None:
        self._redis = redis
        self._script = redis.register_script(script)
        self._waiting: list[Call] = []
        self._sender: asyncio.Task[None] | None = None

    async def call(self, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Call the script; what it answers. Raises what redis-py raises.

        A caller that is cancelled may have been heard, as with any call over a network.
        """
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(((len(keys), *keys, *arguments), answer))
        if self._sender is None or self._sender.done():
            self._sender = asyncio.create_task(self._send())
        return await answer

    async def _send(self) -> None:
        while self._waiting:
            calls, self._waiting = self._waiting[:TOGETHER], self._waiting[TOGETHER:]
            try:
                answers = await self._exchange(calls)
                unknown = [
                    call
                    for call, answer in zip(calls, answers, strict=True)
                    if isinstance(answer, NoScriptError)
                ]
                if unknown:
                    # Redis was started anew, or has never seen it; nothing was done.
                    await self._redis.script_load(self._script.script)
                    again = iter(await self._exchange(unknown))
                    answers = [
                        next(again) if isinstance(answer, NoScriptError) else answer
                        for answer in answers
                    ]
            except (RedisError, OSError) as error:
                answers = [error] * len(calls)
            except BaseException:
                for _, waiting in calls:
                    waiting.cancel()
                raise
            for (_, waiting), answer in zip(calls, answers, strict=True):
                if waiting.done():
                    continue
                if isinstance(answer, Exception):
                    waiting.set_exception(answer)
                else:
                    waiting.set_result(answer)

    async def _exchange(self, calls: Sequence[Call]) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for arguments, _ in calls:
                pipeline.execute_command("EVALSHA", self._script.sha, *arguments)
            answers: list[Any] = await pipeline.execute(raise_on_error=False)
            return answers
