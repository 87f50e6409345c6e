"""Events and texts, whole after broken connections."""

import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from promptstack_client import Client, ConnectionFailed, Job, Run, Unsuccessful
from promptstack_client.models.events import JobStatus, MoreText, Restart

Make = Callable[..., Client]
JOB: dict[str, Any] = {
    "id": "01a229a9-6921-727d-884b-8783fade0286",
    "kind": "generation",
    "state": "succeeded",
    "provider": "demo",
    "model": "demo",
    "created_at": "2026-11-30T10:00:00Z",
    "result": {"text": "Hello, world."},
}


def event(number: int, name: str, data: Any) -> str:
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n"


EVENTS = [
    event(1, "state", {"id": JOB["id"], "state": "running"}),
    event(2, "text", {"text": "Hello"}),
    event(3, "restart", {"attempt": 2, "reason": "a worker died"}),
    event(4, "text", {"text": "Hello, "}),
    event(5, "text", {"text": "world."}),
    event(6, "end", JOB),
]


class EventServer:
    """Sends so many events, and the first half of the next one; then the connection ends."""

    def __init__(self, *counts: int, end: dict[str, Any] = JOB) -> None:
        self.counts = list(counts)
        self.since: list[str | None] = []
        self.events = [*EVENTS[:-1], event(6, "end", end)]

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            assert json.loads(request.content)["stream"] is True
            return httpx2.Response(202, json={**JOB, "state": "queued"})
        self.since.append(request.headers.get("Last-Event-ID"))
        begin = int(self.since[-1] or 0)
        if begin == len(self.events):
            return httpx2.Response(204)
        count = self.counts.pop(0) if self.counts else len(self.events)
        sent = self.events[begin : begin + count]
        half = "".join(self.events[begin + count : begin + count + 1])[:20]
        return httpx2.Response(
            200,
            headers={"Content-Type": "text/event-stream"},
            content=f": heartbeat\n\nretry: 1000\n\n{''.join(sent)}{half}".encode(),
        )


@pytest.mark.parametrize("counts", [(), (1, 1, 1, 1, 1), (2, 3)], ids=["whole", "each", "some"])
def test_events_go_on_after_the_last_one(
    make: Make, pauses: list[float], counts: tuple[int, ...]
) -> None:
    server = EventServer(*counts)
    events = list(make(server).jobs.events(JOB["id"]))
    assert [event.id for event in events] == list("123456")
    kinds = [JobStatus, MoreText, Restart, MoreText, MoreText, Job]
    assert [type(event.data) for event in events] == kinds
    assert len(server.since) == len(counts) + 1


def test_who_had_the_end_is_told_nothing_more(make: Make) -> None:
    assert list(make(EventServer()).jobs.events(JOB["id"], since="6")) == []


def test_events_of_a_newer_server_come_as_they_are(make: Make) -> None:
    server = EventServer()
    server.events[0] = event(1, "mood", {"is": "good"})
    first = next(iter(make(server).jobs.events(JOB["id"])))
    assert (first.name, first.data) == ("mood", {"is": "good"})


def test_a_connection_that_never_brings_anything_is_given_up(
    make: Make, pauses: list[float]
) -> None:
    server = EventServer(*[0] * 100)
    with pytest.raises(ConnectionFailed):
        list(make(server, max_retries=3).jobs.events(JOB["id"]))
    assert len(server.since) == 4


def test_a_text_comes_in_pieces_and_begins_again_where_it_must(
    make: Make, pauses: list[float]
) -> None:
    text = ""
    for piece in make(EventServer(2, 1)).stream("Say hello."):
        text = "" if piece.kind == "restart" else text + piece.text
        job = piece.job
    assert text == "Hello, world."
    assert job is not None
    assert job.text == text


@pytest.mark.parametrize("stored", ["Hello, world. And more.", "Another.", ""])
def test_the_stored_text_is_the_one_that_holds(make: Make, stored: str) -> None:
    text = ""
    for piece in make(EventServer(end={**JOB, "result": {"text": stored}})).jobs.stream(JOB["id"]):
        text = "" if piece.kind == "restart" else text + piece.text
    assert text == stored


def test_a_text_without_an_end_is_an_error(make: Make) -> None:
    end = {**JOB, "state": "failed", "result": None, "error_code": "X", "error": "It broke."}
    with pytest.raises(Unsuccessful, match="failed: It broke"):
        list(make(EventServer(end=end)).jobs.stream(JOB["id"]))


def test_the_events_of_a_job_end_with_its_answer(client: Client) -> None:
    job = client.generate("Say hello to the watchers.")
    events = list(client.events(job))
    assert {event.name for event in events} <= {"state", "end"}
    assert "watchers" in events[-1].data.text  # type: ignore[union-attr]
    assert list(client.jobs.events(job, since=events[-1].id)) == []


def test_the_events_of_a_run_end_with_its_sums(client: Client) -> None:
    run = client.run(["one", "two"])
    events = list(client.events(run))
    assert {event.name for event in events} <= {"progress", "end"}
    assert isinstance(events[-1].data, Run)
    assert events[-1].data.succeeded == 2


def test_the_text_of_a_job_comes_whole(client: Client) -> None:
    *pieces, end = client.stream("Say hello to the readers.")
    assert end.job is not None
    assert "".join(piece.text for piece in pieces) == end.job.text
    assert "readers" in end.job.text
