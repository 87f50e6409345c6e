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
import numpy.typing as npt
import wordllama
from wordllama.inference import WordLlamaInference

from promptstack.services.llm.answers import Capability, EmbeddingResponse
from promptstack.services.llm.base import LLMService
from promptstack.services.llm.local_batches import Batches, Embedded
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
        self._batches = Batches(self._compute, self.embedding_limits)

    async def _embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None, dimensions: int | None
    ) -> EmbeddingResponse:
        embedded = await self._batches.embed(texts)
        return EmbeddingResponse(
            vectors=np.stack([one.vector for one in embedded]),
            model=model,
            input_tokens=sum(one.tokens for one in embedded),
        )

    async def aclose(self) -> None:
        """End the model's thread."""
        self._batches.close()

    def estimate_tokens(self, text: str) -> int:
        """Count the tokens with the model's own tokenizer."""
        encode = self._model().tokenizer.encode
        return sum(len(encode(piece, add_special_tokens=False).ids) for piece in _pieces(text))

    async def is_available(self) -> bool:
        """Whether the weights can be loaded."""
        await asyncio.to_thread(self._model)
        return True

    def _compute(self, texts: Sequence[str]) -> list[Embedded | Exception]:
        """Average the vectors of each text's tokens.

        The library's own `embed` pads all texts to the longest one: a megabyte among 63 short texts
        takes 13 GB.
        """
        loaded = self._model()
        sums = np.zeros((len(texts), loaded.embedding.shape[1]))
        counts = np.zeros(len(texts), dtype=np.int64)
        wrong: dict[int, Exception] = {}
        for place, text in enumerate(texts):
            try:
                counts[place] = _add_up(loaded, text, sums[place])
            except Exception as error:  # noqa: BLE001 - of this text, and the others are embedded
                wrong[place] = error
        means = sums / np.maximum(counts, 1)[:, None]
        with np.errstate(invalid="ignore"):  # a text without tokens has no vector and is refused
            vectors = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
        return [
            wrong.get(place) or Embedded(vector, int(counts[place]))
            for place, vector in enumerate(vectors)
        ]

    def _model(self) -> WordLlamaInference:
        with self._loading:
            if self._loaded is None:
                self._loaded = wordllama.WordLlama.load(
                    cache_dir=Path(wordllama.__file__).parent, disable_download=True
                )
            return self._loaded


def _add_up(loaded: WordLlamaInference, text: str, total: npt.NDArray[np.float64]) -> int:
    """Add the vectors of a text's tokens to `total`. Returns how many there are."""
    count, table = 0, loaded.embedding
    for piece in _pieces(text):
        ids = np.array(loaded.tokenizer.encode(piece, add_special_tokens=False).ids, int)
        np.clip(ids, 0, len(table) - 1, out=ids)
        count += len(ids)
        for begin in range(0, len(ids), BLOCK_TOKENS):
            total += table[ids[begin : begin + BLOCK_TOKENS]].sum(axis=0)
    return count


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text, between words where possible."""
    begin = 0
    while len(text) - begin > PIECE_CHARACTERS:
        end = text.rfind(" ", begin + PIECE_CHARACTERS // 2, begin + PIECE_CHARACTERS)
        end = begin + PIECE_CHARACTERS if end == -1 else end
        yield text[begin:end]
        begin = end
    yield text[begin:]
