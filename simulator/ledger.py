"""The provider's bill, kept apart from what the product believes."""

from collections import Counter
from collections.abc import Iterable
from hashlib import sha256


def billing_key(endpoint: str, model: str, text: str) -> str:
    """Return the SHA-256 that names one piece of paid work: "endpoint NUL model NUL text".

    `endpoint` is a path such as `/v1/embeddings`; the text of a generation is the contents of its
    turns, joined by newlines.
    """
    return sha256(f"{endpoint}\0{model}\0{text}".encode()).hexdigest()


class Ledger:
    """How often each piece of work was billed."""

    def __init__(self) -> None:
        self.billed: Counter[str] = Counter()

    def bill(self, keys: Iterable[str]) -> None:
        """Charge once for each key."""
        self.billed.update(keys)

    def reset(self) -> None:
        """Forget every charge."""
        self.billed.clear()
