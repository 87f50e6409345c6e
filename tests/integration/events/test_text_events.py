"""The text of a job among its events: whole, once, and gone on with after a lost connection."""

import asyncio
import json
from collections.abc import Iterator, Sequence

import pytest

from promptstack.config.names import TEXT_KEY
from promptstack.services.events.places import Event, Look, Place
from promptstack.services.events.watcher import MOST_CHARACTERS, Watcher
from promptstack.services.jobs.views import JobView
from promptstack.services.llm.errors import Overloaded
from promptstack.services.streams.pieces import Piece
from promptstack.tasks.worker_services import WorkerServices
from tests.events import Sent
from tests.fakes import employ
from tests.http import live_server
from tests.integration.events.test_http_events import Reader, user
from tests.integration.streams.test_streamed_jobs import TEXT, Streaming, words_then
from tests.jobs import execute, make_due
from tests.processes import wait_until

WORDS = [word + " " for word in TEXT.split()]


@pytest.fixture
def provider(stack: WorkerServices) -> Streaming:
    provider = Streaming()
    employ(stack, provider)
    return provider


@pytest.fixture
def ada(stack: WorkerServices) -> Iterator[Reader]:
    with live_server(stack) as (_, url):
        reader = Reader(url, stack.keys.create("ada@example.org", "Ada"))
        yield reader
        reader.close()


def streamed(stack: WorkerServices, prompt: str = "Hello.") -> JobView:
    return stack.jobs.enqueue_generation(prompt, provider="fake", stream=True, user_id=user(stack))


def path(job: JobView) -> str:
    return f"/jobs/{job.id}/events"


def text_of(events: Sequence[Sent]) -> str:
    """What a reader has who keeps to the events."""
    text = ""
    for event in events:
        if event.kind == "restart":
            text = ""
        elif event.kind == "text":
            text += event.data["text"]
    return text


def test_its_text_comes_before_its_end(
    ada: Reader, stack: WorkerServices, provider: Streaming
) -> None:
    job = streamed(stack)
    events = ada.events(path(job))
    next(events)
    execute(stack, job.id)
    seen = list(events)
    assert seen[-1].kind == "end"
    assert text_of(seen) == seen[-1].data["result"]["text"] == "".join(WORDS)
    assert "restart" not in {one.kind for one in seen}


def test_a_reader_goes_on_where_it_was(
    ada: Reader, stack: WorkerServices, provider: Streaming
) -> None:
    """Each event is read by a connection of its own."""
    said = " ".join(map(str, range(60_000)))
    provider.say = lambda _: iter([said])
    job = streamed(stack)
    execute(stack, job.id)
    seen: list[Sent] = []
    while not seen or seen[-1].kind != "end":
        headers = {"Last-Event-ID": seen[-1].id} if seen else {}
        seen.append(next(ada.events(path(job), **headers)))
    assert len(seen) > 4
    assert "restart" not in {one.kind for one in seen}
    assert text_of(seen) == said


def test_a_retry_is_a_restart_and_then_the_whole_text(
    ada: Reader, stack: WorkerServices, provider: Streaming
) -> None:
    provider.say = words_then(TEXT, Overloaded("busy"))
    job = streamed(stack)
    events = ada.events(path(job))
    next(events)
    execute(stack, job.id)
    seen = [next(events)]
    while seen[-1].kind != "text":
        seen.append(next(events))
    assert "".join(WORDS[:2]).startswith(text_of(seen))
    make_due(stack, job)
    execute(stack, job.id)
    rest = list(events)
    assert [one.data["attempt"] for one in rest if one.kind == "restart"] == [2]
    assert text_of(seen + rest) == rest[-1].data["result"]["text"] == "".join(WORDS)


@pytest.mark.parametrize("has_some", [False, True], ids=["from the beginning", "from the middle"])
def test_where_the_stream_is_gone_the_ledger_has_the_text(
    ada: Reader, stack: WorkerServices, provider: Streaming, has_some: bool
) -> None:
    job = streamed(stack)
    execute(stack, job.id)
    first = next(ada.events(path(job)))
    assert first.kind == "text"
    stack.redis.delete(TEXT_KEY.format(id=job.id))
    position = first.id.replace(first.id.rsplit("-", 1)[1], "4")  # as after the first word
    events = list(ada.events(path(job), **({"Last-Event-ID": position} if has_some else {})))
    assert [one.kind for one in events] == ["restart"] * has_some + ["text", "end"]
    assert text_of(events) == "".join(WORDS)


def test_a_text_that_is_read_slowly_waits_in_its_stream_and_none_of_it_is_lost() -> None:
    pieces = [Piece(f"65536-{100 * (n + 1)}", "text", 1, f"{n:0100}") for n in range(2_000)]
    slow = Watcher(Place())
    told = 0
    read: list[Event] = []
    rooms: list[int] = []
    slow.on_room = lambda: rooms.append(told)

    async def scene() -> None:
        nonlocal told
        while told < len(pieces):
            while slow.has_room and told < len(pieces):  # as the feed does
                slow.hear(pieces[told : told + 1])
                told += 1
            read.append(await anext(slow))
        slow.finish(Look("end", "{}", "succeeded", True))
        read.extend([event async for event in slow])

    asyncio.run(scene())
    assert len(rooms) > 2
    said = [json.loads(event.data)["text"] for event in read if event.kind == "text"]
    assert "".join(said) == "".join(piece.text for piece in pieces)
    assert max(map(len, said)) <= MOST_CHARACTERS
    assert read[-1].kind == "end"


def test_many_who_read_one_text_at_different_places_each_get_all_of_it(
    ada: Reader, stack: WorkerServices, provider: Streaming
) -> None:
    job = streamed(stack)
    early = [ada.events(path(job)) for _ in range(5)]
    for one in early:
        next(one)
    execute(stack, job.id)
    late = [ada.events(path(job)) for _ in range(5)]
    for events in early + late:
        assert text_of(list(events)) == "".join(WORDS)


def test_a_job_that_does_not_stream_has_no_text_events(
    ada: Reader, stack: WorkerServices, provider: Streaming
) -> None:
    job = stack.jobs.enqueue_generation("Hello.", provider="fake", user_id=user(stack))
    events = ada.events(path(job))
    next(events)
    execute(stack, job.id)
    assert {one.kind for one in events} <= {"state", "end"}


def test_a_server_that_stops_does_not_say_that_redis_is_away(
    stack: WorkerServices, provider: Streaming, caplog: pytest.LogCaptureFixture
) -> None:
    with live_server(stack) as (_, url):
        reader = Reader(url, stack.keys.create("ada@example.org", "Ada"))
        events = reader.events(path(streamed(stack)))
        next(events)
        wait_until(lambda: is_asked_for_texts(stack), "Redis to be asked for the text")
    reader.close()
    assert "Redis is away" not in caplog.text


def is_asked_for_texts(stack: WorkerServices) -> bool:
    return any(client["cmd"] == "xread" for client in stack.redis.client_list())
