"""Cutting documents into chunks."""

import hashlib
from pathlib import PurePath

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from repositories.documents import Passage

MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdx"})
CUT_VERSION = 1
"""Raise it when the same text would be cut otherwise: documents are then cut anew."""


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
        splitter = MarkdownSplitter if _is_markdown(source) else TextSplitter
        return [
            Passage(position, start, chunk, hashlib.sha256(chunk.encode()).digest())
            for position, (start, chunk) in enumerate(
                splitter(self._characters).chunk_indices(text)
            )
        ]


def _is_markdown(source: str) -> bool:
    return PurePath(source).suffix.lower() in MARKDOWN_SUFFIXES
