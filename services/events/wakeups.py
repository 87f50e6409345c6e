"""Hears from Redis which jobs and runs have changed, by one connection for all of them."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 5.0
"""After so long without a word, the server is asked whether it is there."""
RECONNECT_SECONDS = 1.0
NOTHING = "promptstack:nothing"
"""A channel on which nobody speaks: a subscriber must have one."""

OnChange = Callable[[str, str], None]
"""Takes the channel, and what was said on it: the state. Empty where a change may be missed."""


class Wakeups:
    """The channels of all that is watched. Redis being away costs the wake-ups and nothing else.

    It says of each channel that it may have changed once it listens there: also after an outage.
    """

    def __init__(self, connect: Callable[[], Redis], on_change: OnChange) -> None:
        self._connect = connect
        self._on_change = on_change
        self._wanted: set[str] = set()
        self._heard: set[str] = set()
        self._asked = asyncio.Event()
        self.is_connected = False

    def listen_to(self, channel: str) -> None:
        """Hear of this channel from now on."""
        self._wanted.add(channel)
        self._asked.set()

    def leave(self, channel: str) -> None:
        """Hear of it no longer."""
        self._wanted.discard(channel)
        self._asked.set()

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            try:
                async with aclosing(self._connect()) as redis, redis.pubsub() as pubsub:
                    await self._follow(pubsub)
            except (RedisError, OSError) as error:
                if self.is_connected:
                    logger.warning("changes are looked for: Redis is away (%s)", _name(error))
                self.is_connected = False
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _follow(self, pubsub: PubSub) -> None:
        self._heard = set()
        await pubsub.subscribe(NOTHING)
        subscribing = asyncio.create_task(self._subscribe(pubsub))
        try:
            await self._receive(pubsub)
        finally:
            subscribing.cancel()
            await asyncio.gather(subscribing, return_exceptions=True)

    async def _subscribe(self, pubsub: PubSub) -> None:
        """Listen where it is asked for, and nowhere else."""
        while True:
            self._asked.clear()
            new, old = self._wanted - self._heard, self._heard - self._wanted
            self._heard = set(self._wanted)
            if new:
                await pubsub.subscribe(*new)
            if old:
                await pubsub.unsubscribe(*old)
            if not new and not old:
                await self._asked.wait()

    async def _receive(self, pubsub: PubSub) -> None:
        is_asked = False
        while True:
            message: Any = await pubsub.get_message(timeout=SILENCE_SECONDS)
            if message is None:
                if is_asked:
                    raise RedisConnectionError("the server says nothing")
                is_asked = True
                await pubsub.ping()
                continue
            is_asked = False
            self.is_connected = True
            if message["type"] == "message":
                self._on_change(message["channel"], message["data"])
            elif message["type"] == "subscribe":
                self._on_change(message["channel"], "")


def _name(error: BaseException) -> str:
    return type(error).__name__
