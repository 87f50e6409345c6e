"""Many who read the end of one job slowly hold it once, however long it is."""

import asyncio
import tracemalloc
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from promptstack.api.http.events import EventStream
from promptstack.services.events.places import Look, Place
from promptstack.services.events.watcher import Watcher

READERS = 20
LONG = 2_000_000


class Allowed:
    async def holds(self, request: Any) -> bool:
        return True


def stream() -> EventStream:
    stack = SimpleNamespace(settings=SimpleNamespace(events_heartbeat_seconds=15))
    state = SimpleNamespace(still_allowed=Allowed(), stack=stack)
    request: Any = SimpleNamespace(app=SimpleNamespace(state=state))
    topic: Any = None
    return EventStream(request, topic, UUID(int=1), Place())


def test_slow_readers_of_one_end_share_its_bytes() -> None:
    data = '{"text":"' + "é" * LONG + '"}'
    end = Look("end", data, "succeeded", True)
    wholes = []

    async def reading() -> int:
        readers = []
        for _ in range(READERS):
            watcher = Watcher(Place())
            watcher.finish(end)
            events = stream()._written(watcher)
            wholes.append([await anext(events), await anext(events)])  # a piece of the end is out
            readers.append(events)
        held, _ = tracemalloc.get_traced_memory()
        for whole, events in zip(wholes[:2], readers, strict=False):
            whole += [piece async for piece in events]
        return held

    tracemalloc.start()
    try:
        held = asyncio.run(reading())
    finally:
        tracemalloc.stop()
    assert held < 3 * len(data.encode()), "each holds its own"
    expected = f"id: {end.digest}.0\nevent: end\ndata: {data}\n\n".encode()
    assert [b"".join(whole[1:]) for whole in wholes[:2]] == [expected, expected]
