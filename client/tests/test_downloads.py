"""Files of a run, whole after broken connections, or not there at all."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from promptstack_client import Client, ConnectionFailed

Make = Callable[..., Client]
RUN = "01a229a9-6921-727d-884b-8783fade0286"
CONTENT = bytes(range(256)) * 40


class Broken(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    """So many bytes, and then the connection breaks."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __iter__(self) -> Iterator[bytes]:
        yield self._content
        raise httpx2.ReadError("broken")

    async def __aiter__(self) -> Any:
        for piece in self:
            yield piece


class FileServer:
    """Sends 3,000 bytes and breaks off; `tags` name the file for one request after the other."""

    def __init__(self, *tags: str | None) -> None:
        self.tags = list(tags)
        self.ranges: list[str | None] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        asked = request.headers.get("Range")
        tag = self.tags.pop(0)
        self.ranges.append(asked)
        headers = {"X-Incomplete": "true", "X-Next-After": "7"} if tag is None else {"ETag": tag}
        start = 0
        if asked and request.headers["If-Range"] == tag:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            headers["Content-Range"] = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        rest = CONTENT[start:]
        stream = Broken(rest[:3000]) if self.tags else httpx2.ByteStream(rest)
        return httpx2.Response(206 if start else 200, headers=headers, stream=stream)


def test_a_broken_download_goes_on_where_it_was(
    make: Make, pauses: list[float], tmp_path: Path
) -> None:
    server = FileServer('"a"', '"a"', '"a"')
    done = make(server).runs.download(RUN, tmp_path / "vectors.npy")
    assert (tmp_path / "vectors.npy").read_bytes() == CONTENT
    assert (done.path, done.is_complete) == (tmp_path / "vectors.npy", True)
    assert server.ranges == [None, "bytes=3000-", "bytes=6000-"]


@pytest.mark.parametrize("tags", [('"a"', '"b"'), (None, None)], ids=["another", "growing"])
def test_a_file_that_may_have_changed_is_read_anew(
    make: Make, pauses: list[float], tmp_path: Path, tags: Any
) -> None:
    done = make(FileServer(*tags)).runs.download(RUN, tmp_path / "answers.jsonl")
    assert done.path.read_bytes() == CONTENT
    assert (done.is_complete, done.next_after) == ((True, None) if tags[0] else (False, 7))


def test_half_a_file_is_no_file(make: Make, pauses: list[float], tmp_path: Path) -> None:
    (tmp_path / "answers.csv").write_text("what was there before")
    with pytest.raises(ConnectionFailed):
        make(FileServer(*'"a"' * 20), max_retries=0).runs.download(RUN, tmp_path / "answers.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["answers.csv"]
    assert (tmp_path / "answers.csv").read_text() == "what was there before"


def test_the_results_of_a_run_are_a_file(client: Client, tmp_path: Path) -> None:
    run = client.runs.wait(client.runs.generate(["one", "two", "three"]), timeout=60)
    done = client.runs.download(run, tmp_path / "answers.jsonl", with_input=True)
    assert done.is_complete
    lines = [json.loads(line) for line in done.path.read_text().splitlines()]
    assert len(lines) == 3
    assert client.runs.download_failures(run, str(tmp_path / "bad.csv")).path.exists()
    later = client.runs.download(run, tmp_path / "rest.jsonl", after=lines[1]["position"])
    assert len(later.path.read_text().splitlines()) == 1
