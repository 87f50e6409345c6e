"""What the command line reads of a person's disk, and what it says of what it can't read."""

import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from promptstack.api.cli.jobs.documents import find_files, read_text
from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.checks import MAX_SOURCE_BYTES

LIMIT = 10_000_000
BAD_NAME = os.fsdecode(b"caf\xe9.txt")


def names(paths: list[Path], folder: Path) -> list[str]:
    return [str(path.relative_to(folder.resolve())) for path in paths]


def refusal(path: Path, max_bytes: int = LIMIT) -> str:
    """What is said of a file that can't be embedded: one line that names it."""
    with pytest.raises(InvalidInput) as caught:
        read_text(path, max_bytes)
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"plain", "plain"),
        ("grüße 北京 🦉".encode(), "grüße 北京 🦉"),
        (b"\xef\xbb\xbfafter a mark", "after a mark"),
        ("UTF-16 北京".encode("utf-16"), "UTF-16 北京"),
        ("UTF-16".encode("utf-16-be"), "UTF-16"),
        ("UTF-32".encode("utf-32"), "UTF-32"),
        (b"two\r\nlines\r\n", "two\r\nlines\r\n"),
        (b"  spaces stay \n", "  spaces stay \n"),
    ],
)
def test_text_is_read_as_it_is(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "any.suffix"
    path.write_bytes(content)
    file = read_text(path, LIMIT)
    assert (file.source, file.text) == (str(path), text)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b" \n\t\r\n\xe2\x80\x83", "is empty"),
        (b"\x7fELF\x00\x01", "binary"),
        (b"\xff\xfeU\x00T", "is not UTF-16 text (byte 0x54 at 4)"),
        ("ab\x00c".encode("utf-16-le"), "binary"),
        ("Grüße".encode("latin-1"), "not UTF-8 text (byte 0xfc at 2)"),
        (b"cut \xe5\x8c", "not UTF-8 text (byte 0xe5 at 4)"),
        (b"half a pair \xed\xa0\x80", "not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_refused_by_name(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    said = refusal(path)
    assert reason in said
    assert str(path) in said


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.touch()
    os.truncate(path, 50_000_000)
    tracemalloc.start()
    try:
        said = refusal(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "50,000,000" in said
    assert "10,000,000" in said
    assert "MAX_TEXT_BYTES" in said
    assert peak < 1_000_000


def test_the_limit_itself_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "full.txt"
    path.write_bytes(b"x" * 100)
    assert len(read_text(path, 100).text) == 100
    assert "at most 99 are accepted" in refusal(path, 99)


def test_a_fifo_and_a_device_are_refused_without_waiting(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.txt"
    os.mkfifo(fifo)
    assert find_files([fifo]) == [fifo]
    for path in (fifo, Path("/dev/zero")):
        assert refusal(path) == f"{path} is not a regular file."
    with pytest.raises(InvalidInput, match="holds no text files"):
        find_files([tmp_path])


def test_a_file_that_vanished_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path / "gone.txt") in refusal(tmp_path / "gone.txt")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    # Root reads everything, but not the memory of a process from its start.
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    mine.chmod(0)
    path = Path("/proc/self/mem") if os.geteuid() == 0 else mine
    if not path.exists():
        pytest.skip("root reads everything here")
    assert refusal(path).startswith(f"{path} can't be read: ")


def read_all(path: Path) -> None:
    for found in find_files([path]):
        read_text(found, LIMIT)


@contextmanager
def somebody_else() -> Iterator[None]:
    """Be a user without rights for a while, where we are root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65_534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("named", ["closed", "closed/inside.txt", "file.txt"])
def test_without_permission_it_is_said_so(named: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        closed = folder / "closed"
        closed.mkdir()
        for path in (closed / "inside.txt", folder / "file.txt"):
            path.write_text("mine alone")
            path.chmod(0)
        closed.chmod(0)
        try:
            with somebody_else(), pytest.raises(InvalidInput, match=r"[Pp]ermission"):
                read_all(folder / named)
        finally:
            closed.chmod(0o700)


def test_a_name_that_is_not_utf_8_is_refused_readably(tmp_path: Path) -> None:
    path = tmp_path / BAD_NAME
    path.write_text("text")
    assert find_files([tmp_path]) == [path]
    said = refusal(path)
    said.encode()  # can be printed
    assert ascii(str(path))[1:-1] in said or "caf" in said, "does not say which file"


def test_a_path_too_long_for_a_source_is_refused_before_anything_is_enqueued(
    tmp_path: Path,
) -> None:
    folder = tmp_path
    while len(str(folder)) < MAX_SOURCE_BYTES:
        folder /= "x" * 200
    folder.mkdir(parents=True)
    path = folder / "a.txt"
    path.write_text("text")
    assert f"{MAX_SOURCE_BYTES}" in refusal(path).replace(",", "")


def test_a_folder_gives_its_text_files_in_order(tmp_path: Path) -> None:
    wanted = ["a.md", "b/c.TXT", "b/d.rst", "b/e/f.markdown", "g.mdx", "h.text"]
    hidden = [".hidden.txt", ".git/config.txt", "b/.cache/deep/i.md"]
    others = ["j.py", "k", "txt", "b/l.txt.gz", "m.html"]
    for name in wanted + hidden + others:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    (tmp_path / "folder.txt").mkdir()
    assert names(find_files([tmp_path]), tmp_path) == wanted


def test_what_is_named_itself_may_be_hidden_and_of_any_kind(tmp_path: Path) -> None:
    folder = tmp_path / ".hidden"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "b.py").write_text("text")
    assert names(find_files([folder, folder / "b.py"]), folder) == ["a.txt", "b.py"]


def test_each_file_comes_once_whatever_it_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.txt"
    path.write_text("text")
    spellings = [Path("a.txt"), Path(), tmp_path, path, Path("./b/../a.txt")]
    (tmp_path / "b").mkdir()
    assert find_files(spellings) == [path.resolve()]


def test_symbolic_links_neither_loop_nor_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    outside = tmp_path / "outside"
    for each in (folder / "b", outside):
        each.mkdir(parents=True)
        (each / "a.txt").write_text("text")
    (folder / "b" / "up").symlink_to(folder)
    (folder / "out").symlink_to(outside)
    (folder / "link.txt").symlink_to(outside / "a.txt")
    (folder / "broken.txt").symlink_to("nowhere")
    (folder / "loop1.txt").symlink_to("loop2.txt")
    (folder / "loop2.txt").symlink_to("loop1.txt")
    assert names(find_files([folder]), folder) == ["b/a.txt", "link.txt"]


def test_a_linked_folder_that_is_named_is_entered(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.txt").write_text("text")
    (tmp_path / "link").symlink_to("real")
    assert find_files([tmp_path / "link"]) == [(tmp_path / "real" / "a.txt").resolve()]


@pytest.mark.parametrize("name", ["missing", "a.txt/below", "broken", "loop", "x" * 300, BAD_NAME])
def test_a_path_that_is_not_there_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "broken").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / name
    with pytest.raises(InvalidInput) as caught:
        find_files([tmp_path / "a.txt", path])
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("inside", [[], ["a.py"], [".hidden.txt"]])
def test_a_folder_without_text_is_refused_with_what_is_looked_for(
    tmp_path: Path, inside: list[str]
) -> None:
    for name in inside:
        (tmp_path / name).write_text("text")
    with pytest.raises(InvalidInput, match="holds no text files") as caught:
        find_files([tmp_path])
    assert ".md" in str(caught.value)
    assert ".txt" in str(caught.value)
