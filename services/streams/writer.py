"""Writes texts as they are produced, of all jobs of a worker in one exchange with Redis.

A piece leaves at once if none has left in the last milliseconds; others wait for the next exchange
and are joined. Nobody waits for it: Redis being away costs the view, not the job.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from promptstack.config.names import TEXT_KEY
from promptstack.services.circuit_breaker import REST_SECONDS
from promptstack.services.streams.pieces import MOST_RESTARTS, Position

logger = logging.getLogger(__name__)

JOIN_SECONDS = 0.02
PIECE_CHARACTERS = 16_384
"""Characters of one entry."""
FLUSH_SECONDS = 2.0
FENCED = "equal or smaller than the target stream top item"
"""How Redis refuses an id that is not above all others of its stream."""


@dataclass(frozen=True)
class StreamBounds:
    """How much of a text Redis holds, and for how long after its last piece."""

    most_pieces: int
    most_bytes: int
    ttl_seconds: int


class TextStream:
    """The text of one attempt of a job, as it is produced. Used on the event loop only."""

    def __init__(
        self, job_id: UUID, attempt: int, bounds: StreamBounds, wake: "Callable[[TextStream], None]"
    ) -> None:
        self._key = TEXT_KEY.format(id=job_id)
        self._attempt = attempt
        self._bounds = bounds
        self._wake = wake
        self._restarts = 0
        self._reason = ""
        self._text: list[str] = []
        """All of the text, should Redis lose it."""
        self._waiting: list[str] = []
        self._characters = 0
        """Of what was sent."""
        self._is_open = False
        """Whether this text has an entry in Redis."""
        self._ends = False
        self._is_done = False
        """Whether nothing is written any more."""
        self._sent: deque[tuple[str, int]] = deque()
        """The entries in Redis with their bytes, to keep within the bounds."""
        self._bytes = 0
        self._kept_until = 0.0
        if attempt > 1:
            self._begin("the job is tried again")

    def begin(self, reason: str) -> None:
        """Begin the text again: what was written of it is to be forgotten."""
        if self._text:
            self._text = []
            self._restart(reason)

    def write(self, text: str) -> None:
        """Add a piece."""
        if text and not self._ends:
            self._text.append(text)
            self._waiting.append(text)
            self._wake(self)

    def correct(self, text: str) -> None:
        """Show this text in place of what was shown, if that differs: it is what is stored."""
        if text != "".join(self._text):
            self._text = [text] if text else []
            self._restart("the answer differs from what was shown")

    def end(self) -> None:
        """End it: the job has ended."""
        if not self._ends:
            self._ends = True
            self._wake(self)

    def failed(self) -> None:
        """Note that it is unknown what Redis has; it is sent again, but not after the end."""
        self._is_done = self._is_done or self._ends
        self._restart("some of the text was lost")

    @property
    def has_more(self) -> bool:
        """Whether something is to be written."""
        opens = bool(self._reason) and not self._is_open
        return not self._is_done and bool(self._waiting or self._ends or opens)

    def _restart(self, reason: str) -> None:
        self._restarts += 1
        self._begin(reason)

    def _begin(self, reason: str) -> None:
        self._reason = reason
        self._is_open = False
        self._characters = 0
        self._waiting = list(self._text)
        if self._restarts > MOST_RESTARTS:
            self._is_done = True
        self._wake(self)

    def take(self, pipeline: Any, now: float) -> int:
        """Add to a pipeline what is to be written. Returns the number of its commands."""
        commands = 0
        for text in self._joined():
            self._characters += len(text)
            self._add(pipeline, text)
            commands += 1
        if self._ends:
            end = Position.of(self._attempt, self._restarts + 1)
            pipeline.xadd(self._key, {"length": str(self._characters)}, id=str(end))
            self._is_done = True
            commands += 1
        if commands and (self._ends or now > self._kept_until):
            pipeline.expire(self._key, self._bounds.ttl_seconds)
            self._kept_until = now + self._bounds.ttl_seconds / 10
            commands += 1
        return commands

    def _joined(self) -> Iterator[str]:
        text = "".join(self._waiting)
        self._waiting = []
        if not text and self._reason and not self._is_open:
            yield ""
        for start in range(0, len(text), PIECE_CHARACTERS):
            yield text[start : start + PIECE_CHARACTERS]

    def _add(self, pipeline: Any, text: str) -> None:
        name = str(Position.of(self._attempt, self._restarts, self._characters))
        if self._is_open:
            fields = {"text": text}
        else:  # no reader needs what is before it
            fields = {"text": text, "reason": self._reason}
            self._sent.clear()
            self._bytes = 0
        size = len(text.encode())
        self._sent.append((name, size))
        self._bytes += size
        first = name if not self._is_open else self._trimmed()
        pipeline.xadd(
            self._key, fields, id=name, nomkstream=self._is_open, minid=first, approximate=False
        )
        self._is_open = True

    def _trimmed(self) -> str | None:
        """The first entry that stays in Redis; None if that is the first one there is."""
        before = len(self._sent)
        while len(self._sent) > 1 and (
            self._bytes > self._bounds.most_bytes or len(self._sent) > self._bounds.most_pieces
        ):
            self._bytes -= self._sent.popleft()[1]
        return self._sent[0][0] if len(self._sent) < before else None

    def answered(self, answers: Sequence[object]) -> Exception | None:
        """Note what Redis said to the commands that `take` has added.

        Returns the error if it can't take them now, such as without memory.
        """
        errors = [one for one in answers if isinstance(one, Exception)]
        if any(isinstance(one, ResponseError) and FENCED in str(one) for one in errors):
            self._is_done = True  # another worker has the job
            return None
        if errors or None in answers:
            self.failed()
        return errors[0] if errors else None


class TextStreamWriter:
    """The texts of all jobs of a worker. Used on the event loop only."""

    def __init__(
        self,
        redis: Redis,
        bounds: StreamBounds,
        *,
        join_seconds: float = JOIN_SECONDS,
        rest_seconds: float = REST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = redis
        self._bounds = bounds
        self._join_seconds = join_seconds
        self._rest_seconds = rest_seconds
        self._clock = clock
        self._due: dict[TextStream, None] = {}
        self._pump: asyncio.Task[None] | None = None
        self._is_away = False

    def open(self, job_id: UUID, attempt: int) -> TextStream:
        """Begin the text of an attempt. Nobody who had the job before can write any more."""
        return TextStream(job_id, attempt, self._bounds, self._wake)

    async def flush(self) -> None:
        """Wait until all is written, or for `FLUSH_SECONDS` if Redis is away."""
        if self._pump is not None and not self._pump.done():
            await asyncio.wait([self._pump], timeout=FLUSH_SECONDS)

    async def aclose(self) -> None:
        """Write what waits, if Redis is there, and close the connections."""
        await self.flush()
        if self._pump is not None:
            self._pump.cancel()
        await self._redis.aclose()

    def _wake(self, stream: TextStream) -> None:
        self._due[stream] = None
        if self._pump is None or self._pump.done():
            self._pump = asyncio.get_running_loop().create_task(self._write())

    async def _write(self) -> None:
        """Write what is due, again and again while there is something."""
        while self._due:
            due, self._due = self._due, {}
            is_here = await self._exchange([stream for stream in due if stream.has_more])
            await asyncio.sleep(self._join_seconds if is_here else self._rest_seconds)

    async def _exchange(self, streams: Sequence[TextStream]) -> bool:
        """Write what these streams have. Returns whether Redis could take it."""
        pipeline = self._redis.pipeline(transaction=False)
        counts = [stream.take(pipeline, self._clock()) for stream in streams]
        error: Exception | None = None
        try:
            answers = iter(await pipeline.execute(raise_on_error=False))
        except (RedisError, OSError) as away:
            error = away
            for stream in streams:
                stream.failed()
        else:
            for stream, count in zip(streams, counts, strict=True):
                error = stream.answered([next(answers) for _ in range(count)]) or error
        if error is not None and not self._is_away:
            logger.warning("texts are not shown: Redis can't take them (%s)", type(error).__name__)
        self._is_away = error is not None
        return error is None
