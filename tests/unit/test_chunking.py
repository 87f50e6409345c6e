"""Documents are cut in order, without loss, each chunk where its offset says."""

import hashlib
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from services.chunking import Chunker

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
    ]
)
breaks = st.sampled_from([" ", " ", " ", "\n", "\n\n", "\r\n", "\t", ". ", "\u2028", "\u00a0"])
prose = st.lists(st.tuples(words, breaks), max_size=120).map(
    lambda pairs: "".join(word + gap for word, gap in pairs)
)
documents = st.one_of(prose, st.text(max_size=400))


def squeezed(text: str) -> str:
    """The text without its white space, which a cut may drop."""
    return "".join(text.split())


@effort(deadline=None)
@given(documents, st.sampled_from(SOURCES), st.integers(1, 120))
def test_chunks_are_pieces_of_the_text_in_order(text: str, source: str, size: int) -> None:
    chunks = Chunker(size).cut(text, source)
    assert [chunk.position for chunk in chunks] == list(range(len(chunks)))
    end = 0
    for chunk in chunks:
        assert chunk.start >= end
        end = chunk.start + len(chunk.text)
        assert text[chunk.start : end] == chunk.text
        assert 0 < len(chunk.text) <= size
        assert chunk.content_hash == hashlib.sha256(chunk.text.encode()).digest()
    assert squeezed("".join(chunk.text for chunk in chunks)) == squeezed(text)


@effort(deadline=None)
@given(documents, st.sampled_from(SOURCES), st.integers(50, 120))
def test_cutting_again_gives_the_same(text: str, source: str, size: int) -> None:
    assert Chunker(size).cut(text, source) == Chunker(size).cut(text, source)


@pytest.mark.parametrize("source", SOURCES)
def test_text_that_fits_is_one_chunk(source: str) -> None:
    [chunk] = Chunker(100).cut("One sentence. Another one.", source)
    assert (chunk.start, chunk.text) == (0, "One sentence. Another one.")


def test_markdown_is_cut_at_headings_and_text_is_not() -> None:
    text = "# One\n\n" + "word " * 8 + "\n\n# Two\n\n" + "word " * 8
    cut = {source: Chunker(60).cut(text, source) for source in ("a.md", "a.txt")}
    assert [chunk.text.split("\n")[0] for chunk in cut["a.md"]] == ["# One", "# Two"]
    assert cut["a.txt"] != cut["a.md"]


@pytest.mark.parametrize("text", ["", " ", "\n\n\t"])
def test_nothing_to_cut_gives_no_chunk(text: str) -> None:
    assert Chunker(50).cut(text, "a.txt") == []


def test_a_fingerprint_changes_with_all_that_changes_the_chunks() -> None:
    one, other = (hashlib.sha256(name).digest() for name in (b"one", b"other"))
    prints = [
        Chunker(50).fingerprint(one, "a.txt"),
        Chunker(50).fingerprint(other, "a.txt"),
        Chunker(51).fingerprint(one, "a.txt"),
        Chunker(50).fingerprint(one, "a.md"),
    ]
    assert len(set(prints)) == len(prints)


@given(st.text(max_size=20), st.sampled_from([".txt", ".rst", ""]))
def test_a_fingerprint_does_not_depend_on_the_name(name: str, suffix: str) -> None:
    content = hashlib.sha256(b"text").digest()
    chunker = Chunker(50)
    if PurePath(name + suffix).suffix.lower() not in {".md", ".markdown", ".mdx"}:
        assert chunker.fingerprint(content, name + suffix) == chunker.fingerprint(content, "a")
