"""Events of a real server, read on through the deaths of a worker, of the server and of Redis."""

import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from httpx2 import Client, HTTPError

from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.composition import PromptStack
from tests.acceptance.test_outages import Broker, broker
from tests.doors import Door
from tests.events import Sent, read_events
from tests.processes import Process, wait_until

__all__ = ["broker"]
PROMPT = "Count from one to thirty in words, and do not leave out any of them, please."
RECONNECT_SECONDS = 0.2
MOST_CONNECTIONS = 600


class Reader:
    """Watches a job or run in a thread until its end, and goes on when a connection is cut."""

    def __init__(self, doors: Sequence[Door], path: str, key: str) -> None:
        self.seen: list[Sent] = []
        self.connections = 0
        self._doors = doors
        self._path = path
        self._http = Client(headers={"Authorization": f"Bearer {key}"}, timeout=30)
        self._is_cut = threading.Event()
        self._is_left = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def cut(self) -> None:
        """Close its connection with the next event."""
        self._is_cut.set()

    def finish(self) -> None:
        self._thread.join(60)
        self._is_left.set()
        assert not self._thread.is_alive(), self.seen[-3:]
        # Who has had the end is told not to ask again.
        assert self._http.get(self._url, headers=self._place).status_code == 204
        self._http.close()

    @property
    def _url(self) -> str:
        return f"{self._doors[-1].url}{self._path}/events"

    @property
    def _place(self) -> dict[str, str]:
        return {"Last-Event-ID": self.seen[-1].id} if self.seen else {}

    def _watch(self) -> None:
        while not self._is_left.wait(RECONNECT_SECONDS) and self.connections < MOST_CONNECTIONS:
            self.connections += 1
            try:
                with self._http.stream("GET", self._url, headers=self._place) as answer:
                    if answer.status_code == 200 and self._read(answer):
                        return
            except HTTPError:
                continue

    def _read(self, answer: Any) -> bool:
        """Read until the end, or until cut; whether it was the end."""
        for event in read_events(answer.iter_lines()):
            if not event.comment:
                self.seen.append(event)
            if event.kind == "end":
                return True
            if self._is_cut.is_set():
                self._is_cut.clear()
                return False
        return False

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.seen]

    @property
    def restarts(self) -> list[Any]:
        return [event.data for event in self.seen if event.kind == "restart"]

    @property
    def text(self) -> str:
        """What is shown after the last restart."""
        text = ""
        for event in list(self.seen):
            text = "" if event.kind == "restart" else text
            text += event.data["text"] if event.kind == "text" else ""
        return text


class Site:
    """Servers of the HTTP API, each after the one before, and a user of them."""

    def __init__(self, open_door: Callable[..., Door], key: str) -> None:
        self._open_door = open_door
        self._key = key
        self.doors = [open_door()]

    def open_anew(self) -> None:
        """Kill the server, and start another."""
        self.doors[-1].process.kill()
        self.doors.append(self._open_door())

    def watch(self, route: str, of: str, body: dict[str, Any]) -> Reader:
        """Hand in work, and watch it."""
        headers = {"Authorization": f"Bearer {self._key}"}
        with Client(headers=headers, timeout=30) as http:
            answer = http.post(f"{self.doors[-1].url}/api/v1/{route}", json=body)
        assert answer.status_code == 202, answer.text
        return Reader(self.doors, f"/api/v1/{of}/{answer.json()['id']}", self._key)

    def stream(self, prompt: str = PROMPT) -> Reader:
        return self.watch("generations", "jobs", {"prompt": prompt, "stream": True})


@pytest.fixture
def site(runs: PromptStack, open_door: Callable[..., Door]) -> Site:
    return Site(open_door, runs.keys.create("ada@example.org", "Ada"))


def is_amid(reader: Reader) -> bool:
    """Whether it has some of the text."""
    return len(reader.text) > len("Simulated")


def check_end(reader: Reader) -> None:
    """The text came before the end, whole; the end came once and as the last."""
    assert reader.kinds.count("end") == 1
    assert reader.seen[-1].data["state"] == "succeeded"
    assert reader.text == reader.seen[-1].data["result"]["text"]


def test_a_worker_that_is_killed_costs_a_reader_one_restart_and_no_text(
    site: Site, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    simulator.set_latency(0.0, piece_seconds=0.2)
    worker = start_worker()
    reader = site.stream()
    wait_until(lambda: is_amid(reader), "some of the text")
    worker.send(signal.SIGKILL)
    worker.wait()
    simulator.set_latency(0.0)
    start_worker()
    reader.finish()
    check_end(reader)
    assert reader.restarts == [{"attempt": 2, "reason": "the job is tried again"}]
    assert reader.connections == 1
    assert reader.seen[-1].data["attempt"] == 2


def test_a_reader_that_is_cut_off_goes_on_without_gap_or_repeat(
    site: Site, simulator: SimulatorProcess, start_worker: Callable[..., Process]
) -> None:
    """First by itself, then by a server that is killed under it."""
    simulator.set_latency(0.0, piece_seconds=0.2)
    start_worker()
    reader = site.stream()
    wait_until(lambda: is_amid(reader), "some of the text")
    reader.cut()
    wait_until(lambda: reader.connections == 2, "the reader to connect again")
    site.open_anew()
    reader.finish()
    check_end(reader)
    assert reader.restarts == []
    assert reader.connections >= 3


def test_a_redis_that_dies_takes_no_end_with_it(
    simulator: SimulatorProcess,
    broker: Broker,
    open_door: Callable[..., Door],
    start_worker: Callable[..., Process],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REDIS_URL", broker.url)
    simulator.set_latency(0.0, piece_seconds=0.2)
    start_worker(REDIS_URL=broker.url)
    site = Site(open_door, broker.caller.keys.create("ada@example.org", "Ada"))
    during = [site.stream(f"{number}. {PROMPT}") for number in range(3)]
    through = site.stream(PROMPT * 2)
    wait_until(lambda: all(is_amid(reader) for reader in (*during, through)), "some of the texts")
    broker.server.stop()
    for reader in during:
        reader.finish()
        check_end(reader)
        assert reader.connections == 1
    broker.server.start(None)
    through.finish()
    check_end(through)
    # And one reader feeds the watchers again that hears of changes from Redis.
    after = site.stream()
    wait_until(lambda: is_amid(after), "the text to be shown again")
    assert "end" not in after.kinds
    after.finish()
    check_end(after)
