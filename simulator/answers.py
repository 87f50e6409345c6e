"""The answers of a simulated model: the same for the same input, in every run and process."""

from collections.abc import Sequence
from hashlib import shake_256

import numpy as np
import numpy.typing as npt

DEFAULT_DIMENSIONS = 1_536
DIMENSIONS = {"text-embedding-3-large": 3_072}
"""Of the models whose vectors have another size, where a request asks for none."""
MOST_DIMENSIONS = 65_536


def vector_for(
    model: str, text: str, dimensions: int = DEFAULT_DIMENSIONS
) -> npt.NDArray[np.float32]:
    """Return the embedding of `text`, of length 1.

    The numbers are the SHAKE-256 of "model NUL text" read as little-endian 16-bit integers, so a
    shorter vector is the start of the longer one, scaled: as with OpenAI's `dimensions`.
    Raises `ValueError` of an impossible length.
    """
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise ValueError(f"dimensions must be 1 to {MOST_DIMENSIONS}")
    digest = shake_256(f"{model}\0{text}".encode()).digest(2 * dimensions)
    numbers = np.frombuffer(digest, dtype="<i2").astype(np.float32)
    return numbers / np.linalg.norm(numbers)


def text_for(model: str, prompts: Sequence[str]) -> str:
    """Return the generation for a conversation: a tag of its content, then its last turn."""
    tag = shake_256("\0".join([model, *prompts]).encode()).hexdigest(4)
    return f"Simulated answer {tag} to: {prompts[-1][:200]}"


def tokens_in(text: str) -> int:
    """Count tokens as OpenAI's embeddings service does: a quarter of the UTF-8 bytes."""
    return -(-len(text.encode()) // 4)
