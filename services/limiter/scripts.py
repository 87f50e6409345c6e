"""The limiter's scripts and how they are called: questions at the same time share a round trip."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

import orjson
from redis.asyncio import Redis, RedisCluster
from redis.exceptions import NoScriptError

BATCH_SIZE = 200
"""Questions in one round trip at most: Redis does nothing else meanwhile."""
GATHER_SECONDS = 0.005
"""How long what nobody waits for may wait for company."""
PARTS: Mapping[str, Sequence[str]] = {
    "bucket": (
        "bucket", "fair_queue", "acquire", "leave", "look", "settlement", "settle", "throttle",
        "answers",
    ),
    "renew": ("renew",),
}  # fmt: skip
"""The files in the folder `lua` that make up each script, in order."""


class Place(NamedTuple):
    """A bucket as the script is told of it."""

    keys: tuple[str, ...]
    settings: bytes
    """A person's settings, as the members of a JSON object."""


@dataclass(frozen=True, eq=False)
class Question:
    """A question that waits to be sent."""

    place: Place
    words: Mapping[str, Any]
    answer: "asyncio.Future[Any]"


Call = tuple[str, Sequence[Any], Sequence[Question]]
"""The name of a script, its keys and arguments, and which questions it answers."""


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
    """Calls the scripts. While one round trip runs, further questions gather for the next.

    Questions about one bucket are one call of the script, which reads the bucket's state once. One
    shared connection takes a third of the CPU time of a connection for each question.
    """

    def __init__(self, redis: "Redis | RedisCluster", scripts: Mapping[str, str]) -> None:
        self._redis = redis
        self._scripts = scripts
        self._hashes = {
            name: sha1(source.encode(), usedforsecurity=False).hexdigest()
            for name, source in scripts.items()
        }
        self._waiting: list[Question] = []
        self._sender: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def ask(
        self, place: Place, words: Mapping[str, Any], *, at_once: bool = True
    ) -> "asyncio.Future[Any]":
        """Ask about a bucket. The future raises redis-py's errors.

        The script may have run even where the future was cancelled. Unless it is `at_once`, the
        question waits a moment for others to go with.
        """
        loop = asyncio.get_running_loop()
        question = Question(place, words, loop.create_future())
        self._waiting.append(question)
        if at_once:
            self._start()
        elif self._timer is None and not self._is_sending():
            self._timer = loop.call_later(GATHER_SECONDS, self._start)
        return question.answer

    async def run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run another script. Raises redis-py's errors."""
        (answer,) = await self._answers([(script, (len(keys), *keys, *arguments), ())])
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def drain(self) -> None:
        """Wait until nothing waits to be sent."""
        while self._waiting or self._is_sending():
            self._start()
            await asyncio.wait([self._sender] if self._sender else [])

    def _is_sending(self) -> bool:
        return self._sender is not None and not self._sender.done()

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._is_sending():
            self._sender = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        while self._waiting:
            questions, self._waiting = self._waiting[:BATCH_SIZE], self._waiting[BATCH_SIZE:]
            try:
                calls = _calls(questions)
                answers = await self._answers(calls)
                for (_, _, asked), answer in zip(calls, answers, strict=True):
                    _hand_over(asked, answer)
            except Exception as error:  # noqa: BLE001 - who asked must hear, whatever it is
                _hand_over(questions, error)
            except BaseException:
                for question in questions:
                    question.answer.cancel()
                raise

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


def _calls(questions: Sequence[Question]) -> list[Call]:
    """One call of the script for each bucket, with its questions in their order."""
    by_place: dict[Place, list[Question]] = {}
    for question in questions:
        by_place.setdefault(question.place, []).append(question)
    return [
        (
            "bucket",
            (
                len(place.keys),
                *place.keys,
                b'{%b,"questions":%b}'
                % (place.settings, orjson.dumps([question.words for question in asked])),
            ),
            asked,
        )
        for place, asked in by_place.items()
    ]


def _hand_over(questions: Sequence[Question], answers: Any) -> None:
    for at, question in enumerate(questions):
        if question.answer.done():
            continue
        if isinstance(answers, Exception):
            question.answer.set_exception(answers)
        else:
            question.answer.set_result(answers[at])
