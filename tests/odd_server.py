"""A server that answers anything, and the odd answers that it gives."""

import asyncio
import base64
import copy
import gzip
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

Place = tuple[str | int, ...]
"""Where something stands in a JSON value: names of fields and positions."""


class OddServer:
    """Answers every call with the bytes it is told, whatever was asked."""

    def __init__(self) -> None:
        self.answer = b""
        self.calls = 0
        self.url = ""
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**24)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """Serve on a loop of its own, until the block is left."""
        begun: Future[Callable[[], Any]] = Future()

        async def serve() -> None:
            over, loop = asyncio.Event(), asyncio.get_running_loop()
            await self.start()
            begun.set_result(lambda: loop.call_soon_threadsafe(over.set))
            await over.wait()
            await self.stop()

        thread = threading.Thread(target=lambda: asyncio.run(serve()))
        thread.start()
        end = begun.result()
        try:
            yield
        finally:
            end()
            thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                if "content-length:" in head:
                    await reader.readexactly(int(head.split("content-length:")[1].split()[0]))
                self.calls += 1
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@dataclass(frozen=True)
class OddAnswer:
    """An answer, and what was done to it."""

    body: Any
    touched: tuple[Place, ...] = ()
    """The places of which it isn't what a provider says."""
    head: Mapping[str, str] = field(default_factory=dict)
    encode: Callable[[str], bytes] = str.encode
    is_chunked: bool = False
    is_zipped: bool = False
    status: int = 200

    def wire(self) -> bytes:
        """The bytes of its HTTP."""
        raw = self.encode(DEEP.sub(_nested, json.dumps(self.body)))
        head = {"content-type": "application/json", **self.head}
        if self.is_zipped:
            raw, head["content-encoding"] = gzip.compress(raw, 1), "gzip"
        if self.is_chunked:
            head["transfer-encoding"] = "chunked"
            cut = len(raw) // 2 + 1
            parts = [part for part in (raw[:cut], raw[cut:]) if part]
            raw = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (*parts, b""))
        else:
            head["content-length"] = str(len(raw))
        lines = [f"{name}: {value}" for name, value in head.items()]
        return "\r\n".join([f"HTTP/1.1 {self.status} Any", *lines, "", ""]).encode() + raw

    def spares(self, places: Sequence[Place]) -> bool:
        """Whether all that stands in these places, and around them, is as it was."""
        return not any(
            touched[: len(place)] == place or place[: len(touched)] == touched
            for touched in self.touched
            for place in places
        )


NUMBERS = (
    st.integers()
    | st.floats()
    | st.sampled_from([-1, 2**31, 2**63, 2**64, 10**30, 10**400, 1e308, 0.5, -0.0])
)
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["", "0", "1", "12", "-1", "\x00", "\ud800", "a\nb", "x" * 10_000, "true", "null", "[]", "é"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)


DEEP = re.compile(r'"@nested (\d+)@"')
"""Stands for a list in a list, and so on, so deep that Python can't write it."""


def _nested(found: re.Match[str]) -> str:
    depth = int(found[1])
    return "[" * depth + "1" + "]" * depth


HEADS: Sequence[Mapping[str, str]] = (
    {},
    {"content-type": "text/plain"},
    {"content-type": "text/html; charset=nonsense"},
    {"content-type": "application/json; charset=utf-16"},
    {"content-type": ";;;"},
    {"content-type": "application/json; charset=rot13"},
    {"x-request-id": "r" * 9_000},
    {"x-long": "y" * 60_000},
    {"set-cookie": "c=" + "z" * 20_000},
    {f"x-many-{number}": "m" for number in range(300)},
    {"x-ratelimit-limit-requests": "NaN", "x-ratelimit-remaining-requests": "-1"},
    {"x-ratelimit-limit-tokens": "9" * 400, "x-ratelimit-remaining-tokens": "1e999"},
    {"retry-after": "inf", "request-id": "\x7f\x01"},
)
ENCODINGS: Sequence[Callable[[str], bytes]] = (
    str.encode,
    lambda text: b"\xef\xbb\xbf" + text.encode(),
    lambda text: text.encode("utf-16"),
    lambda text: text.encode("utf-32"),
    lambda text: b"\r\n\t " + text.encode() + b"\n\n",
)


def places_in(value: Any, at: Place = ()) -> list[Place]:
    """Every place in a JSON value, the whole of it first."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value[:8]))
    return [at, *(place for name, one in inner for place in places_in(one, (*at, name)))]


@st.composite
def odd_answers(draw: st.DrawFn, right: Any, most: int = 3) -> OddAnswer:
    """A right answer in which some places hold anything, or nothing, and others are added."""
    body, touched = copy.deepcopy(right), []
    for _ in range(draw(st.integers(0, most))):
        place = draw(st.sampled_from(places_in(body)))
        body, where = _touched(draw, body, place)
        touched.append(where)
    answer = OddAnswer(body, tuple(touched))
    if draw(st.integers(0, 3)) == 0:
        answer = replace(
            answer,
            head=draw(st.sampled_from(HEADS)),
            encode=draw(st.sampled_from(ENCODINGS)),
            is_chunked=draw(st.booleans()),
            is_zipped=draw(st.booleans()),
        )
    return answer


def _touched(draw: st.DrawFn, body: Any, place: Place) -> tuple[Any, Place]:
    anything = ANYTHING | st.sampled_from([f"@nested {depth}@" for depth in (40, 160, 900, 9_000)])
    if not place:
        return (draw(anything), ()) if draw(st.integers(0, 4)) == 0 else (body, ("nowhere",))
    around: Any = body
    for step in place[:-1]:
        around = around[step]
    last: Any = place[-1]
    match draw(st.sampled_from(["replace", "replace", "replace", "drop", "add", "wrap", "twice"])):
        case "replace":
            around[last] = draw(anything)
        case "drop":
            del around[last]
            if isinstance(around, list):
                place = place[:-1]
        case "add" if isinstance(around, dict):
            name = draw(st.sampled_from(["error", "type", "x"]) | TEXTS)
            around.setdefault(name, draw(anything))
            place = (*place[:-1], name)
        case "wrap":
            around[last] = [around[last]]
        case "twice" if isinstance(around, list):
            around.insert(0, around[last])
            place = place[:-1]
        case _:
            place = ("nowhere",)
    return body, place


def base64_of(vector: Sequence[float]) -> str:
    """A vector as OpenAI sends it."""
    return base64.b64encode(np.array(vector, dtype="<f4").tobytes()).decode()
