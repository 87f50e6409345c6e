"""Reads the texts of all who watch one as it is produced, by one question to Redis for all."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from uuid import UUID

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from promptstack.config.logging import log_unexpected
from promptstack.services.events.places import Look
from promptstack.services.events.watcher import Watcher
from promptstack.services.streams.pieces import Piece, Position
from promptstack.services.streams.reader import TextStreams

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 1.0
"""How long the question stands where no text comes; a new watcher has it asked anew."""
RETRY_SECONDS = 1.0
LATE_SECONDS = 0.5
MOST_ROUNDS = 4
"""Questions one after the other: those who are at odd positions don't hold up all others."""

Group = tuple[UUID, str, list[Watcher]]
"""Those who are at one position of one text: it is read once for them."""


class TextFeed:
    """The texts of streaming jobs, on the event loop of those who watch.

    Who reads slowly is read for again when there is room, from where they are: the stream keeps
    what they have not read, or the ledger has it at the end.
    """

    def __init__(self, redis: Redis, connect: Callable[[], AsyncRedis]) -> None:
        self._streams = TextStreams(redis)
        self._redis = redis
        self._connect = connect
        self._watchers: dict[UUID, set[Watcher]] = {}
        self._bell = asyncio.Event()
        self._turn = 0
        self._reader: asyncio.Task[None] | None = None

    def join(self, one: UUID, watcher: Watcher) -> None:
        """Tell a watcher the text of this job."""
        self._watchers.setdefault(one, set()).add(watcher)
        if self._reader is None or self._reader.done():
            self._bell = asyncio.Event()
            self._reader = asyncio.create_task(self._read())
        watcher.on_room = self._bell.set
        self._bell.set()

    def leave(self, one: UUID, watcher: Watcher) -> None:
        """Tell it no more."""
        watchers = self._watchers.get(one, set())
        watchers.discard(watcher)
        if not watchers:
            self._watchers.pop(one, None)

    def has(self, one: UUID, watcher: Watcher) -> bool:
        """Whether it is told the text of this job."""
        return watcher in self._watchers.get(one, ())

    def close(self) -> None:
        """Read no more."""
        if self._reader is not None:
            self._reader.cancel()
            self._bell.set()

    async def wait_for_all(self, watchers: Sequence[Watcher]) -> None:
        """Wait a moment for the end of a text: the ledger is often a little before the stream."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LATE_SECONDS):
                for watcher in watchers:
                    await watcher.has_all.wait()

    def rest(self, one: UUID, position: str, end: Look) -> list[Piece]:
        """What is missing after a position of a text whose job has ended. Asks Redis."""
        if end.text is None:
            return []
        pieces = self._streams.rest(one, position, end.text, end.attempt)
        return [piece for piece in pieces if piece.kind != "end"]

    async def _read(self) -> None:
        """Read while somebody watches a text."""
        connection = self._connect()
        streams = TextStreams(self._redis, connection)
        try:
            while self._watchers and not _was_cancelled():
                try:
                    await self._read_once(streams)
                except Exception as error:  # noqa: BLE001 - nobody else would tell them anything
                    log_unexpected(logger, "texts are not told now", error)
                    await asyncio.sleep(RETRY_SECONDS)
        finally:
            # First: who comes from now on needs another reader.
            self._reader = None
            await connection.aclose()

    async def _read_once(self, streams: TextStreams) -> None:
        self._bell.clear()
        rounds = self._rounds()
        if not rounds:
            await self._rings()
            return
        first, *others = rounds
        for groups in others:
            self._tell(groups, await streams.aread(_positions(groups)))
        # All that is behind was read; what comes now wakes those of the first round.
        reading = asyncio.create_task(streams.aread(_positions(first), BLOCK_SECONDS))
        ringing = asyncio.create_task(self._bell.wait())
        try:
            await asyncio.wait({reading, ringing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Also when this is cancelled: closed under its question, Redis would seem to be away.
            for task in (reading, ringing):
                task.cancel()
            found, _ = await asyncio.gather(reading, ringing, return_exceptions=True)
        if isinstance(found, Mapping):
            self._tell(first, found)
        elif isinstance(found, Exception):
            raise found

    def _tell(self, groups: Sequence[Group], found: Mapping[UUID, Sequence[Piece]]) -> None:
        for one, position, watchers in groups:
            for watcher in watchers:
                # It may have left meanwhile: at the end, it is told all that is missing.
                if watcher.position == position and self.has(one, watcher):
                    watcher.hear(found.get(one, ()))

    async def _rings(self) -> None:
        try:
            async with asyncio.timeout(BLOCK_SECONDS):
                await self._bell.wait()
        except TimeoutError:
            pass

    def _rounds(self) -> list[list[Group]]:
        """Whom to read for: each text once a round, as one question has one position of each.

        Where those of a text are at many positions, they take turns.
        """
        rounds: list[list[Group]] = []
        for one, watchers in self._watchers.items():
            at: dict[str, list[Watcher]] = {}
            for watcher in watchers:
                if watcher.has_room:
                    at.setdefault(watcher.position, []).append(watcher)
            if not at:
                continue
            # Who is furthest behind is waited for: somebody else may be ahead of all that comes.
            behind, *others = sorted(at, key=Position.parse)
            first = self._turn % len(others) if others else 0
            chosen = [*others[first:], *others[:first]][: MOST_ROUNDS - 1]
            for number, position in enumerate([behind, *chosen]):
                if number == len(rounds):
                    rounds.append([])
                rounds[number].append((one, position, at[position]))
        self._turn += MOST_ROUNDS - 1
        return rounds


def _was_cancelled() -> bool:
    """Whether this task is to end. In Python 3.11 redis-py may take no notice that it is cancelled.

    There, `asyncio.wait_for` returns what was ready in the same moment, and the task goes on.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _positions(groups: Sequence[Group]) -> dict[UUID, str]:
    return {one: position for one, position, _ in groups}
