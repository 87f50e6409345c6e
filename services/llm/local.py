"""The local provider: real embeddings on this machine's processor, from WordLlama's weights.

The weights come inside the wheel, so nothing is downloaded and no text leaves the machine.
"""

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from uuid import UUID

import numpy as np
import wordllama
from wordllama.inference import WordLlamaInference

from services.llm.base import Capability, EmbeddingLimits, EmbeddingResponse, LLMService

MODEL = "wordllama-256"


class LocalService(LLMService):
    """Embeds with the 256-dimension WordLlama model."""

    name = "local"
    is_limited = False
    default_models: ClassVar = {Capability.EMBEDDING: MODEL}
    known_models: ClassVar = {Capability.EMBEDDING: frozenset({MODEL})}
    # Small batches keep progress moving and cancels quick; there is no request to save.
    embedding_limits = EmbeddingLimits(items=64, bytes=1_000_000)

    def __init__(self) -> None:
        super().__init__()
        self._loading = threading.Lock()
        self._loaded: WordLlamaInference | None = None

    async def _embed(
        self, texts: Sequence[str], model: str, user_id: UUID | None
    ) -> EmbeddingResponse:
        # It computes: on a thread, so that the event loop goes on serving other calls.
        return await asyncio.to_thread(self._compute, texts, model)

    def estimate_tokens(self, text: str) -> int:
        """The number of tokens that the model's own tokenizer makes."""
        return len(self._model().tokenizer.encode(text, add_special_tokens=False).ids)

    async def is_available(self) -> bool:
        """Whether the weights can be loaded."""
        await asyncio.to_thread(self._model)
        return True

    def _compute(self, texts: Sequence[str], model: str) -> EmbeddingResponse:
        vectors = np.asarray(self._model().embed(list(texts), norm=True), dtype=np.float32)
        return EmbeddingResponse(
            vectors=vectors,
            model=model,
            input_tokens=sum(self.estimate_tokens(text) for text in texts),
        )

    def _model(self) -> WordLlamaInference:
        with self._loading:
            if self._loaded is None:
                self._loaded = wordllama.WordLlama.load(
                    cache_dir=Path(wordllama.__file__).parent, disable_download=True
                )
            return self._loaded
