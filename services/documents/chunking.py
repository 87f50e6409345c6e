"""Cutting documents into chunks."""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePath

from semantic_text_splitter import MarkdownSplitter, TextSplitter

from promptstack.config.errors import ConfigurationError
from promptstack.config.settings import MAX_CHUNK_TOKENS, MIN_CHUNK_TOKENS
from promptstack.repositories.content.documents import Passage
from promptstack.services.errors import InvalidInput

MARKDOWN_SUFFIXES = frozenset({".md", ".markdown", ".mdx"})
CUT_VERSION = 3
"""Raise it when the same text would be cut differently; documents are then cut anew."""

VOCABULARY_OF = "text-embedding-3-small"
"""The model whose tokens are counted (cl100k_base). Its vocabulary is compiled into
semantic-text-splitter, so nothing is downloaded."""
OVERLAP_SHARE = 8
ROOM = 8
"""Tokens that a model may add around a text."""
CHARACTERS_A_TOKEN = 4
"""About this many in prose in Latin script."""

BLOCK_CHARACTERS = 2_000
BLOCK_SIZES = 16
"""The splitter gets BLOCK_CHARACTERS at once, or BLOCK_SIZES for each token of a chunk if that is
more. Its time grows with the square of a text without spaces, and no other thread of the process
runs meanwhile. So a million characters of prose take 0.5 to 1 s, of random letters 3 s and of
Chinese without punctuation 7 s, and other threads wait less than 0.1 s (semantic-text-splitter
0.33; 512 tokens with 64 of overlap). With 8,000 tokens a chunk, odd texts hold them up for
seconds."""

BLANK_LINES = 16
WHITE_SPACE = re.compile(rf"\s{{{BLANK_LINES},}}")
"""Blank lines are the slowest: with an overlap the splitter takes 4 s for 8,000 of them."""


class Chunker:
    """Cuts on Markdown, paragraph, sentence and word borders, into at most `tokens` each.

    A chunk begins with the end of the one before it, up to `overlap` tokens (by default an eighth
    of `tokens`), so that a sentence at a border is whole in one of the two. There is no overlap if
    the borders allow none, and none across many blank lines.

    Tokens are those of cl100k_base, or of `tokenizer`, a tokenizer.json of Hugging Face. Another
    model counts differently, so leave some room.
    """

    def __init__(
        self, tokens: int, overlap: int | None = None, tokenizer: Path | None = None
    ) -> None:
        self.tokens = tokens
        self._tokenizer = tokenizer
        self._overlap = tokens // OVERLAP_SHARE if overlap is None else overlap
        if not MIN_CHUNK_TOKENS <= tokens <= MAX_CHUNK_TOKENS:
            raise InvalidInput(
                f"A chunk must be allowed at least {MIN_CHUNK_TOKENS} tokens, and at most "
                f"{MAX_CHUNK_TOKENS:,}."
            )
        if not 0 <= self._overlap < tokens:
            raise InvalidInput(
                f"The overlap of chunks must be 0 or more tokens, and less than the {tokens} of a"
                " chunk."
            )

    def by(self, tokenizer: Path | None) -> "Chunker":
        """The same chunker, with another tokenizer."""
        if tokenizer == self._tokenizer:
            return self
        return Chunker(self.tokens, self._overlap, tokenizer)

    def at_most(self, tokens: int | None) -> "Chunker":
        """The same chunker, with chunks of at most `tokens`, and never less than the minimum."""
        if tokens is None or tokens >= self.tokens:
            return self
        tokens = max(tokens, MIN_CHUNK_TOKENS)
        return Chunker(tokens, self._overlap * tokens // self.tokens, self._tokenizer)

    def taken_by(self, text_tokens: int | None) -> "Chunker":
        """The same chunker, for a model whose texts may have `text_tokens`."""
        return self if text_tokens is None else self.at_most(text_tokens - ROOM)

    def size(self, text: str, source: str) -> int:
        """How many tokens one of the chunks has: the smallest limit that leaves it in one piece."""
        least, most = MIN_CHUNK_TOKENS, self.tokens
        while least < most:
            middle = (least + most) // 2
            if len(self.at_most(middle).cut(text, source)) == 1:
                most = middle
            else:
                least = middle + 1
        return least

    def fingerprint(self, content_hash: bytes, source: str) -> bytes:
        """Identify the chunks of a text: it changes if they would be cut differently."""
        kind = "markdown" if _is_markdown(source) else "text"
        recipe = f"{CUT_VERSION}:{self.tokens}:{self._overlap}:{kind}".encode()
        if self._tokenizer is not None:
            recipe += hashlib.sha256(_read(self._tokenizer).encode()).digest()
        return hashlib.sha256(recipe + content_hash).digest()

    def guess(self, characters: int) -> int:
        """About how many chunks a text of so many characters has."""
        return 1 + characters // (CHARACTERS_A_TOKEN * (self.tokens - self._overlap))

    def cut(self, text: str, source: str) -> list[Passage]:
        """Return the chunks in order, each with its offset in characters."""
        kind = MarkdownSplitter if _is_markdown(source) else TextSplitter
        # The first in a process loads the vocabulary, in 0.1 to 0.2 s; all share its 25 MB.
        if self._tokenizer is None:
            splitter = kind.from_tiktoken_model(VOCABULARY_OF, self.tokens, self._overlap)
        else:
            splitter = _by_tokenizer(self._tokenizer, kind, self.tokens, self._overlap)
        block = max(BLOCK_CHARACTERS, BLOCK_SIZES * self.tokens)
        found = (
            chunk
            for begin, end in sections(text)
            for chunk in _chunks(splitter, text, begin, end, block)
        )
        return [
            Passage(position, start, chunk, hashlib.sha256(chunk.encode()).digest())
            for position, (start, chunk) in enumerate(found)
        ]


@lru_cache(maxsize=8)
def _read(tokenizer: Path) -> str:
    try:
        return tokenizer.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The tokenizer {tokenizer} can't be read: {error}.") from error


@lru_cache(maxsize=8)
def _by_tokenizer(
    tokenizer: Path, kind: type[TextSplitter | MarkdownSplitter], tokens: int, overlap: int
) -> TextSplitter | MarkdownSplitter:
    try:
        return kind.from_huggingface_tokenizer_str(_read(tokenizer), tokens, overlap)
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"The tokenizer {tokenizer} is no tokenizer.json of Hugging Face."
        ) from error


def sections(text: str) -> Iterator[tuple[int, int]]:
    """The begin and end of each part of a text between many blank lines."""
    begin = 0
    for gap in WHITE_SPACE.finditer(text):
        if len(gap.group().splitlines()) >= BLANK_LINES:
            yield begin, gap.start()
            begin = gap.end()
    yield begin, len(text)


def _chunks(
    splitter: TextSplitter | MarkdownSplitter, text: str, begin: int, end: int, block: int
) -> Iterator[tuple[int, str]]:
    """Cut the text between `begin` and `end`, block by block.

    The last chunk of a block may go on in the next one, which therefore begins with it. So chunks
    are nearly the same as without blocks. A block that is one chunk (16 characters a token, such
    as a long line of dashes) ends there, without an overlap.
    """
    reached = begin
    while begin < end:
        until = min(begin + block, end)
        found = [(begin + at, chunk) for at, chunk in splitter.chunk_indices(text[begin:until])]
        begin = until
        if until < end and len(found) > 1:
            begin, _ = found.pop()
        for start, chunk in found:
            # Before a long word the splitter makes a chunk of only the overlap: leave it out.
            if start + len(chunk) > reached:
                reached = start + len(chunk)
                yield start, chunk


def _is_markdown(source: str) -> bool:
    return PurePath(source).suffix.lower() in MARKDOWN_SUFFIXES
