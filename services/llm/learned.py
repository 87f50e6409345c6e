"""What workers learn about models from the refusals of servers, shared for a day.

It is kept in Redis and not in the ledger: where it is lost, one or two refused calls, which nobody
bills, teach it again.
"""

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from redis import Redis
from redis.exceptions import RedisError

from promptstack.config.names import LEARNED_KEY
from promptstack.config.settings import MIN_CHUNK_TOKENS
from promptstack.services.llm.errors import ContextTooLong, ModelNotFound, ProviderError
from promptstack.services.llm.packing import EmbeddingInput, EmbeddingLimits

logger = logging.getLogger(__name__)

FORGET_SECONDS = 86_400
"""After a day: the server may have a new configuration."""
LOOK_AGAIN_SECONDS = 15.0
MOST_MODELS = 10_000
SUSPECTS = 32
SAID = 300
"""Characters of a refusal that are read: later ones may quote the request."""
_COUNTED = re.compile(
    r"(?:larger than|greater than|more than|at most|max\w*|limit\w*|exceed\w*|up to|<=|超过)"
    r"\D{0,40}?(\d{1,3}(?:,\d{3})+|\d+)(?![\d.,]*\d)"
    # The word after the number: it must not count bytes, lines or words.
    r"(?! ?(?!(?:inputs?|texts?|items?|documents?|requests?|elements?|strings?|entries|sequences?"
    r"|and|at|but|for|got|in|not|or|per|received|your)\b)[a-z])",
)
_OF_TEXTS = re.compile(r"batch|inputs?\b|texts|items|documents|requests|elements|数组|条")
_TOO_MANY = re.compile(
    r"too many (?:inputs|texts|items|documents|elements)|more batches"
    r"|batch(?: size)? (?:is )?(?:too (?:large|big)|invalid)"
)


class LearnedFacts:
    """Facts by server and model. Their names are those of `ModelFacts`."""

    def __init__(
        self, redis: Redis | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take `redis`, through which workers share facts; with None they stay in this process."""
        self._redis = redis
        self._clock = clock
        self._known: dict[tuple[str, str], dict[str, str]] = {}
        self._read_at: dict[tuple[str, str], float] = {}

    def is_stale(self, server: str, model: str) -> bool:
        """Whether other workers may have learned more since Redis was read."""
        read_at = self._read_at.get((server, model))
        is_old = read_at is None or self._clock() - read_at >= LOOK_AGAIN_SECONDS
        return self._redis is not None and is_old

    def of(self, server: str, model: str) -> Mapping[str, str]:
        """The facts of a model. Never raises: without Redis, it returns what this process knows."""
        if self.is_stale(server, model):
            self._make_room()
            self._read_at[server, model] = self._clock()
            try:
                self._known[server, model] = self._read(server, model)
            except (RedisError, OSError) as error:
                logger.warning("what was learned can't be read (%s)", type(error).__name__)
        return self._known.get((server, model), {})

    def learn(self, server: str, model: str, fact: str, value: str | int) -> bool:
        """Keep a fact in this process. Returns whether it is new and should be shared."""
        self._make_room()
        before = self._known.get((server, model), {}).get(fact)
        if before == str(value) or (before and isinstance(value, int) and int(before) < value):
            return False  # of two limits, the lower one holds
        logger.warning("learned of %s: %s = %s", model, fact, value)
        self._known[server, model] = {**self._known.get((server, model), {}), fact: str(value)}
        return self._redis is not None

    def share(self, server: str, model: str, fact: str, value: str | int) -> None:
        """Share a fact with all workers. Never raises."""
        if self._redis is None:
            return
        try:
            key = LEARNED_KEY.format(server=server, model=model)
            self._redis.hset(key, fact, str(value))
            self._redis.expire(key, FORGET_SECONDS)
        except (RedisError, OSError) as error:
            logger.warning("what was learned can't be shared (%s)", type(error).__name__)

    def _read(self, server: str, model: str) -> dict[str, str]:
        if self._redis is None:
            return {}
        found: Mapping[str, str] = self._redis.hgetall(  # type: ignore[assignment]
            LEARNED_KEY.format(server=server, model=model)
        )
        return dict(found)

    def _make_room(self) -> None:
        if len(self._known) >= MOST_MODELS or len(self._read_at) >= MOST_MODELS:
            self._known.clear()
            self._read_at.clear()


def most_texts(said: str, asked: int) -> int | None:
    """How many texts a call may have, if the refusal of a call with `asked` texts says so.

    It is half of them where the refusal only says that they were too many.
    """
    said = said[:SAID].lower()
    if "token" in said:
        return None  # it is about the length of a text
    if _OF_TEXTS.search(said):
        named = [int(found.replace(",", "")) for found in _COUNTED.findall(said)]
        fewer = [number for number in named if 0 < number < asked]
        if fewer:
            return max(fewer)
    return max(1, asked // 2) if _TOO_MANY.search(said) else None


class ServerLimits:
    """Learns from one server's answers and refusals how much an embedding call may hold."""

    def __init__(self, facts: LearnedFacts, server: str) -> None:
        self._facts = facts
        self._server = server
        self._refused: dict[str, RefusedCalls] = {}

    def within(self, stated: EmbeddingLimits, model: str) -> EmbeddingLimits:
        """The `stated` limits of a model, lowered to what was learned."""
        learned = self._facts.of(self._server, model)
        texts, tokens = learned.get("texts_per_call"), learned.get("tokens_per_text")
        return replace(
            stated,
            items=min(stated.items, int(texts or stated.items)),
            text_tokens=int(tokens) if tokens else stated.text_tokens,
        )

    def answered(self, texts: Sequence[EmbeddingInput], model: str) -> None:
        """Note that a call was answered. It may prove that a larger one had too many texts."""
        if model in self._refused and (most := self._refused[model].answered(texts)) is not None:
            self.learn(model, "texts_per_call", most)

    def refused(
        self, error: ProviderError, texts: Sequence[EmbeddingInput], model: str
    ) -> int | None:
        """How many texts the server takes in one call, if it refused this one for their number."""
        limit = error.limit if isinstance(error, ContextTooLong) and error.given else None
        # A lower number is no model's limit: the refusal may quote the text.
        if len(texts) == 1 and limit and limit >= MIN_CHUNK_TOKENS:
            self.learn(model, "tokens_per_text", limit)
        if len(texts) == 1 or isinstance(error, ModelNotFound):
            return None
        most = most_texts(error.detail or "", len(texts))
        if most is not None:
            self.learn(model, "texts_per_call", most)
        elif error.status == 413 or not isinstance(error, ContextTooLong):
            self._refused.setdefault(model, RefusedCalls()).refused(texts)
        return most

    def learn(self, model: str, fact: str, value: str | int) -> None:
        """Keep a fact, and share it in the background.

        Waiting for Redis could lose a paid answer: the call may be cancelled meanwhile.
        """
        if self._facts.learn(self._server, model, fact, value):
            share = partial(self._facts.share, self._server, model, fact, value)
            asyncio.get_running_loop().run_in_executor(None, share)

    async def facts(self, model: str) -> Mapping[str, str]:
        """The facts of a model. Redis is read on a thread, not on the event loop."""
        if self._facts.is_stale(self._server, model):
            return await asyncio.to_thread(self._facts.of, self._server, model)
        return self._facts.of(self._server, model)


class RefusedCalls:
    """Learns how many texts a call may have from a server whose refusals do not say it.

    A refused call was too large if smaller calls then answered each of its texts.
    """

    def __init__(self) -> None:
        self._open: deque[tuple[set[int], int, int]] = deque(maxlen=SUSPECTS)
        self._answered = 0

    def refused(self, texts: Sequence[EmbeddingInput]) -> None:
        """Note that a call was refused. Its halves may be refused, too."""
        asked = set(map(hash, texts))
        if len(texts) > self._answered and not any(asked <= left for left, _, _ in self._open):
            self._open.append((asked, len(texts), 0))

    def answered(self, texts: Sequence[EmbeddingInput]) -> int | None:
        """The most texts a call may have, if this answer proves that a larger call had too many."""
        self._answered = max(self._answered, len(texts))
        given, proven = set(map(hash, texts)) if self._open else set(), None
        for _ in range(len(self._open)):
            left, asked, largest = self._open.popleft()
            if not given.isdisjoint(left):
                left, largest = left - given, max(largest, len(texts))
            if left:
                self._open.append((left, asked, largest))
            elif self._answered < asked:
                proven = largest
        return proven
