"""Texts to embed: different from each other, and the same in every run."""

import random

SEED = 20_261
WORDS = 4_000
BYTES = 400
_SYLLABLES = ("ba", "con", "der", "est", "ing", "lo", "men", "per", "qui", "ra", "sto", "tion", "u")


def make_texts(count: int, size: int = BYTES) -> list[str]:
    """Make `count` texts of about `size` bytes, which is a quarter as many tokens."""
    chance = random.Random(SEED)  # noqa: S311
    words = ["".join(chance.choices(_SYLLABLES, k=chance.randint(1, 4))) for _ in range(WORDS)]
    length = sum(map(len, words)) / WORDS + 1
    # The number makes each different, whatever its words.
    return [
        f"{number} " + " ".join(chance.choices(words, k=round(size / length)))
        for number in range(count)
    ]
