"""The local provider: real embeddings on this machine's processor, from WordLlama's weights.

The weights come inside the wheel, so nothing is downloaded and no text leaves the machine.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar
from uuid import UUID

import numpy as np
import wordllama
from wordllama.inference import WordLlamaInference

from promptstack.services.llm.answers import Capability, EmbeddingResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.packing import EmbeddingLimits

MODEL = "wordllama-256"
PIECE_CHARACTERS = 50_000
"""Characters that are tokenized at once: tokens take a hundred times the memory of their text."""
BLOCK_TOKENS = 4_096
"""Tokens whose vectors are added up at once: four megabytes."""


class LocalService(LLMService):
    """Embeds with the 256-dimension WordLlama model."""

    name = "local"
    is_limited = False
    default_models: ClassVar = {Capability.EMBEDDING: MODEL}
    known_models: ClassVar = {Capability.EMBEDDING: frozenset({MODEL})}
    # Small batches show progress often and can be cancelled soon; there are no requests to save.
    embedding_limits = EmbeddingLimits(items=64, bytes=200_000)

    def __init__(self) -> None:
        super().__init__()
        self._loading = threading.Lock()
        self._loaded: WordLlamaInference | None = None

    async def _embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None
    ) -> EmbeddingResponse:
        # On a thread, so that the event loop serves other calls meanwhile.
        return await asyncio.to_thread(self._compute, texts, model)

    def estimate_tokens(self, text: str) -> int:
        """Count the tokens with the model's own tokenizer."""
        encode = self._model().tokenizer.encode
        return sum(len(encode(piece, add_special_tokens=False).ids) for piece in _pieces(text))

    async def is_available(self) -> bool:
        """Whether the weights can be loaded."""
        await asyncio.to_thread(self._model)
        return True

    def _compute(self, texts: Sequence[str], model: str) -> EmbeddingResponse:
        """Average the vectors of each text's tokens.

        The library's own `embed` pads all texts to the longest one: a megabyte among 63 short texts
        takes 13 GB.
        """
        loaded = self._model()
        table = loaded.embedding
        sums = np.zeros((len(texts), table.shape[1]))
        counts = np.zeros(len(texts), dtype=np.int64)
        for place, text in enumerate(texts):
            for piece in _pieces(text):
                ids = np.array(loaded.tokenizer.encode(piece, add_special_tokens=False).ids, int)
                np.clip(ids, 0, len(table) - 1, out=ids)
                counts[place] += len(ids)
                for begin in range(0, len(ids), BLOCK_TOKENS):
                    sums[place] += table[ids[begin : begin + BLOCK_TOKENS]].sum(axis=0)
        means = sums / np.maximum(counts, 1)[:, None]
        with np.errstate(invalid="ignore"):  # a text without tokens has no vector and is refused
            vectors = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
        return EmbeddingResponse(vectors=vectors, model=model, input_tokens=int(counts.sum()))

    def _model(self) -> WordLlamaInference:
        with self._loading:
            if self._loaded is None:
                self._loaded = wordllama.WordLlama.load(
                    cache_dir=Path(wordllama.__file__).parent, disable_download=True
                )
            return self._loaded


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text, between words where possible."""
    begin = 0
    while len(text) - begin > PIECE_CHARACTERS:
        end = text.rfind(" ", begin + PIECE_CHARACTERS // 2, begin + PIECE_CHARACTERS)
        end = begin + PIECE_CHARACTERS if end == -1 else end
        yield text[begin:end]
        begin = end
    yield text[begin:]
