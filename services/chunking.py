"""Cutting documents into chunks."""

import hashlib
from collections.abc import Iterator
from pathlib import PurePath

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from repositories.documents import Passage

MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdx"})
BORDERS = ("\n\n", "\n", " ")
CUT_VERSION = 2
"""Raise it when the same text would be cut otherwise: documents are then cut anew."""

BLOCK_CHARACTERS = 50_000
"""What the splitter gets at once. Its time grows with the square of the text
(semantic-text-splitter 0.33: 0.03 s for 50,000 characters, over 8 minutes for 10 million without a
space), and meanwhile no other thread of the process runs."""


class Chunker:
    """Cuts on Markdown, paragraph, sentence and word borders, into at most `characters` each."""

    def __init__(self, characters: int) -> None:
        self._characters = characters

    def fingerprint(self, content_hash: bytes, source: str) -> bytes:
        """Tell whether chunks that were cut earlier are the ones that would be cut now."""
        kind = "markdown" if _is_markdown(source) else "text"
        recipe = f"{CUT_VERSION}:{self._characters}:{kind}".encode()
        return hashlib.sha256(recipe + content_hash).digest()

    def cut(self, text: str, source: str) -> list[Passage]:
        """Return the chunks in order, each with its offset in characters."""
        kind = MarkdownSplitter if _is_markdown(source) else TextSplitter
        splitter = kind(self._characters)
        found = (
            (begin + start, chunk)
            for begin, end in blocks(text, BLOCK_CHARACTERS)
            for start, chunk in splitter.chunk_indices(text[begin:end])
        )
        return [
            Passage(position, start, chunk, hashlib.sha256(chunk.encode()).digest())
            for position, (start, chunk) in enumerate(found)
        ]


def blocks(text: str, size: int) -> Iterator[tuple[int, int]]:
    """Cut a long text into blocks of at most `size` characters; where each begins and ends.

    On the last paragraph border in the second half of a block, else line, else space, else there.
    """
    begin = 0
    while len(text) - begin > size:
        found = (text.rfind(border, begin + size // 2, begin + size) for border in BORDERS)
        end = next((at + 1 for at in found if at != -1), begin + size)
        yield begin, end
        begin = end
    yield begin, len(text)


def _is_markdown(source: str) -> bool:
    return PurePath(source).suffix.lower() in MARKDOWN_SUFFIXES
