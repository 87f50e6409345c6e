"""Documents are cut in order, without loss, each chunk where its offset says."""

import hashlib
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import PurePath

import pytest
from hypothesis import example, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from semantic_text_splitter import TextSplitter

from promptstack.services.documents import chunking
from promptstack.services.documents.chunking import VOCABULARY_OF, Chunker
from promptstack.services.errors import InvalidInput
from tests.processes import PATIENCE

SOURCES = ["notes.txt", "notes.md", "NOTES.MARKDOWN", "no suffix", "https://example.org/a.mdx"]

words = st.sampled_from(
    [
        "word",
        "größe",
        "日本語",
        "🙂",
        "e\u0301",
        "👩‍👩‍👧",
        "# Title",
        "- item",
        "```",
        "a.b",
        "1) x",
        "|",
        "-" * 50,
        "Zx9" * 30,
    ]
)
breaks = st.sampled_from(
    [" ", " ", " ", "\n", "\n\n", "\r\n", "\t", ". ", "\u2028", "\u00a0", "\n" * 20, " " * 40]
)
prose = st.lists(st.tuples(words, breaks), max_size=120).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)
documents = st.one_of(prose, st.text(max_size=400))
sizes = st.integers(16, 120).flatmap(
    lambda tokens: st.tuples(st.just(tokens), st.none() | st.integers(0, tokens - 1))
)


def squeezed(text: str) -> str:
    """The text without its white space, which a cut may drop."""
    return "".join(text.split())


def fits(text: str, tokens: int) -> bool:
    """Whether a text has at most so many tokens, without what white space is around it."""
    whole = text.strip()
    if not whole or not tokens:
        return not whole
    return TextSplitter.from_tiktoken_model(VOCABULARY_OF, tokens).chunks(whole) == [whole]


@pytest.mark.parametrize("block", [chunking.BLOCK_CHARACTERS, 100])
@effort(deadline=None)
@given(documents, st.sampled_from(SOURCES), sizes)
@example("word " * 10 + " " * 40 + "Zx9" * 30, "notes.txt", (16, None))
def test_chunks_are_pieces_of_the_text_in_order(
    block: int, text: str, source: str, size: tuple[int, int | None]
) -> None:
    tokens, overlap = size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "BLOCK_CHARACTERS", block)
        patch.setattr(chunking, "BLOCK_SIZES", min(block, chunking.BLOCK_SIZES) // 16)
        chunks = Chunker(tokens, overlap).cut(text, source)
        assert chunks == Chunker(tokens, overlap).cut(text, source)
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    start, end, uncovered = -1, 0, []
    for chunk in chunks:
        assert chunk.start > start
        assert chunk.start + len(chunk.text) > end
        assert fits(text[chunk.start : end], tokens // 8 if overlap is None else overlap)
        uncovered.append(text[end : chunk.start])
        start, end = chunk.start, chunk.start + len(chunk.text)
        assert text[start:end] == chunk.text
        assert fits(chunk.text, tokens)
        assert chunk.content_hash == hashlib.sha256(chunk.text.encode()).digest()
    assert squeezed("".join([*uncovered, text[end:]])) == ""


@pytest.mark.parametrize("source", SOURCES)
def test_text_that_fits_is_one_chunk(source: str) -> None:
    [chunk] = Chunker(100).cut("One sentence. Another one.", source)
    assert (chunk.start, chunk.text) == (0, "One sentence. Another one.")


def test_markdown_is_cut_at_headings_and_text_is_not() -> None:
    text = "# One\n\n" + "word " * 20 + "\n\n# Two\n\n" + "word " * 20
    cut = {source: Chunker(40, 0).cut(text, source) for source in ("a.md", "a.txt")}
    assert [chunk.text.split("\n")[0] for chunk in cut["a.md"]] == ["# One", "# Two"]
    assert cut["a.txt"] != cut["a.md"]


@pytest.mark.parametrize("source", ["a.txt", "a.md"])
def test_a_chunk_begins_with_the_last_sentences_of_the_one_before(source: str) -> None:
    """Also where a long text is cut block by block."""
    sentences = [f"Sentence number {n} says this and that, and little else." for n in range(5_000)]
    text = " ".join(sentences)
    chunks = Chunker(100, 30).cut(text, source)
    assert len(text) > 10 * chunking.BLOCK_CHARACTERS
    lines = [chunk.text.replace(". ", ".\n").split("\n") for chunk in chunks]
    assert {line for some in lines for line in some} == set(sentences)
    assert all(
        before[-2:] == after[:2] or before[-1] == after[0] for before, after in pairwise(lines)
    )


@pytest.mark.parametrize("text", ["", " ", "\n\n\t", "\n" * 100])
def test_nothing_to_cut_gives_no_chunk(text: str) -> None:
    assert Chunker(50).cut(text, "a.txt") == []


@pytest.mark.parametrize("source", ["a.txt", "a.md"])
@pytest.mark.parametrize("blank", ["\n", "\n ", "\r\n", "\u00a0\n", "\u2028"])
def test_blank_lines_take_no_time(source: str, blank: str) -> None:
    """By itself the splitter takes over 100 s for some of these."""
    text = f"{blank * 20_000}Beginning.{blank * 20_000}End.{blank * 20_000}"
    began = time.process_time()
    chunks = Chunker(512).cut(text, source)
    assert time.process_time() - began < 3
    assert [chunk.text for chunk in chunks] == ["Beginning.", "End."]
    assert [chunk.start for chunk in chunks] == [text.index("B"), text.index("E")]


@pytest.mark.parametrize("text", ["x" * 200_000, "漢" * 50_000, "-" * 200_000])
def test_text_without_spaces_is_cut_in_a_time_that_grows_with_its_length(text: str) -> None:
    """At once, 200,000 characters would take a minute."""
    began = time.process_time()
    chunks = Chunker(512).cut(text, "a.txt")
    assert time.process_time() - began < 10
    assert chunks[-1].start + len(chunks[-1].text) == len(text)


def test_the_vocabulary_is_loaded_when_something_is_cut_and_from_no_network() -> None:
    """Importing the chunker and making one must cost next to nothing."""
    script = """
import socket, time
socket.socket.connect = lambda *_: exit("asked the network")
from promptstack.services.documents.chunking import Chunker
began = time.process_time(); chunker = Chunker(512); made = time.process_time() - began
began = time.process_time(); chunker.cut("One.", "a.txt"); first = time.process_time() - began
began = time.process_time(); Chunker(99).cut("Two.", "a.md"); second = time.process_time() - began
assert made < 0.01 and second < first / 5, (made, first, second)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("size", [(0, 0), (15, 0), (16, 16), (16, 17), (16, -1)])
def test_sizes_that_make_no_sense_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidInput, match="tokens"):
        Chunker(*size)


def test_a_guess_is_about_right() -> None:
    text = "The quick brown fox jumps over the lazy dog, and nobody knows why. " * 2_000
    chunker = Chunker(512)
    found = len(chunker.cut(text, "a.txt"))
    assert found / 2 < chunker.guess(len(text)) < found * 2
    assert chunker.guess(0) == 1


def test_a_fingerprint_changes_with_all_that_changes_the_chunks() -> None:
    one, other = (hashlib.sha256(name).digest() for name in (b"one", b"other"))
    prints = [
        Chunker(50).fingerprint(one, "a.txt"),
        Chunker(50).fingerprint(other, "a.txt"),
        Chunker(51).fingerprint(one, "a.txt"),
        Chunker(50, 0).fingerprint(one, "a.txt"),
        Chunker(50).fingerprint(one, "a.md"),
    ]
    assert len(set(prints)) == len(prints)
    assert Chunker(50, 50 // 8).fingerprint(one, "a.txt") == prints[0]


@given(st.text(max_size=20), st.sampled_from([".txt", ".rst", ""]))
def test_a_fingerprint_does_not_depend_on_the_name(name: str, suffix: str) -> None:
    content = hashlib.sha256(b"text").digest()
    chunker = Chunker(50)
    if PurePath(name + suffix).suffix.lower() not in {".md", ".markdown", ".mdx"}:
        assert chunker.fingerprint(content, name + suffix) == chunker.fingerprint(content, "a")
