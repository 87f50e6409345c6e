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
        self._is_stopped = False
        self._followed: PubSub | None = None
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
        """Listen until stopped and cancelled."""
        while not self._is_stopped:
            try:
                async with aclosing(self._connect()) as redis, redis.pubsub() as pubsub:
                    await self._follow(pubsub)
            except (RedisError, OSError) as error:
                if self.is_connected:
                    logger.warning("changes are looked for: Redis is away (%s)", _name(error))
                self.is_connected = False
            await asyncio.sleep(RECONNECT_SECONDS)

    def stop(self) -> None:
        """Let `run` end, should redis-py take no notice that it is cancelled (it may not)."""
        self._is_stopped = True
        self._followed = None
        self._asked.set()

    async def _follow(self, pubsub: PubSub) -> None:
        self._heard = set()
        self._followed = pubsub
        await pubsub.subscribe(NOTHING)
        subscribing = asyncio.create_task(self._subscribe(pubsub))
        try:
            await self._receive(pubsub, subscribing)
        finally:
            self._followed = None
            self._asked.set()
            subscribing.cancel()

    async def _subscribe(self, pubsub: PubSub) -> None:
        """Listen where it is asked for, and nowhere else."""
        while self._followed is pubsub:
            self._asked.clear()
            new, old = self._wanted - self._heard, self._heard - self._wanted
            self._heard = set(self._wanted)
            if new:
                await pubsub.subscribe(*new)
            if old:
                await pubsub.unsubscribe(*old)
            if not new and not old:
                await self._asked.wait()

    async def _receive(self, pubsub: PubSub, subscribing: "asyncio.Task[None]") -> None:
        is_asked = False
        while not self._is_stopped:
            if subscribing.done():
                subscribing.result()  # raises why
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
