"""Questions of many calls share one exchange with Redis; each asker hears what came of its own."""

import asyncio
from typing import Any, Self

from promptstack.services.limiter.scripts import Place, ScriptCalls


class Pipeline:
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def execute_command(self, *_: object) -> None:
        pass

    async def execute(self, **_: object) -> list[Any]:
        return [[1] * 10]


class AnsweringRedis:
    def pipeline(self, **_: object) -> Pipeline:
        return Pipeline()


def test_nobody_waits_for_ever_where_a_question_can_t_be_written() -> None:
    async def ask() -> tuple[int, int]:
        redis: Any = AnsweringRedis()
        calls = ScriptCalls(redis, {"bucket": ""})
        place = Place(("key",), b'"a":1')
        asked = [
            calls.ask(place, {"act": "acquire"}),
            calls.ask(place, {"act": "settle", "used": 10**30}),
        ]
        heard, waiting = await asyncio.wait(asked, timeout=30)
        assert all(one.exception() for one in heard)
        # The next ones are not hindered by it.
        assert await calls.ask(place, {"act": "acquire"}) == 1
        return len(heard), len(waiting)

    assert asyncio.run(ask()) == (2, 0)
