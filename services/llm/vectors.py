"""Reads and checks the vectors of an answer."""

from collections import Counter
from typing import TYPE_CHECKING, Any

from pybase64 import b64decode

from promptstack.services.llm.answers import EmbeddingResponse
from promptstack.services.llm.errors import BadResponse
from promptstack.services.llm.reading import Part, kind_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class NumbersAsText(ValueError):
    """The numbers of a vector are strings. Asking again would return the same."""


def vectors(
    rows: "list[Part]", field: str, texts: int, *, index: str | None = None
) -> "tuple[npt.NDArray[np.float32], dict[int, npt.NDArray[np.float32]]]":
    """Return the vectors in the order of the texts, and those of an unusual size by position.

    At these positions, the first result has zeros. Rows without an `index` are in the order of the
    texts. Raises one of `WRONG_FORM`.
    """
    import numpy as np  # noqa: PLC0415 - only workers that embed need it, and it takes 16 MB

    if len(rows) != texts:
        raise ValueError(f"{len(rows)} vectors for {texts} texts")
    if index is not None:
        placed = {row.count(index): row for row in rows}
        if texts > 1 and any(row.get(index) is not None for row in rows):
            if placed.keys() != set(range(texts)):
                raise ValueError("there isn't exactly one vector for each text")
            rows = [placed[place] for place in range(texts)]
    found = [_vector(row.get(field)) for row in rows]
    (size, most), *less = Counter(map(len, found)).most_common(2)
    if less and less[0][1] == most:
        raise ValueError(f"as many vectors have {size} numbers as have {less[0][0]}")
    others = {place: vector for place, vector in enumerate(found) if len(vector) != size}
    return np.stack(
        [
            np.zeros_like(found[0], shape=size) if place in others else vector
            for place, vector in enumerate(found)
        ]
    ), others


def check_vectors(answer: EmbeddingResponse, texts: int, provider: str) -> None:
    """Raise `BadResponse` for a wrong count, a wrong shape or numbers that are not finite."""
    import numpy as np  # noqa: PLC0415 - only workers that embed need it, and it takes 16 MB

    vectors = answer.vectors
    if vectors.ndim != 2 or vectors.shape[0] != texts or vectors.shape[1] == 0:
        raise BadResponse(
            f"{provider} answered vectors of shape {vectors.shape} for {texts} texts; "
            "nothing was stored."
        )
    if not all(np.isfinite(one).all() for one in (vectors, *answer.others.values())):
        raise BadResponse(f"{provider} answered numbers that are not finite; nothing was stored.")


def check_size(answer: EmbeddingResponse, asked: int, provider: str) -> None:
    """Raise `BadResponse` for vectors of another size than was asked for."""
    other = next((size for size in answer.sizes() if size != asked), None)
    if other is not None:
        raise BadResponse(
            f"{provider} answered vectors of {other} numbers where {asked} were asked for; nothing "
            "was stored. It may not know dimensions: leave it out."
        )


def _vector(value: Any) -> "npt.NDArray[np.float32]":
    import numpy as np  # noqa: PLC0415 - only workers that embed need it, and it takes 16 MB

    if isinstance(value, str):
        return np.frombuffer(b64decode(value, validate=True), dtype="<f4")
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list):
        raise TypeError(f"a vector is {kind_of(value)}, and no list of numbers")
    kinds = set(map(type, value))
    if kinds == {str}:
        raise NumbersAsText("a vector's numbers are texts")
    if not kinds <= {int, float}:
        odd = next(one for one in value if type(one) not in {int, float})
        raise ValueError(
            f"a vector holds {'nothing' if odd is None else kind_of(odd)} where a number belongs"
        )
    # A number too large for float32 becomes infinite, which `check_vectors` refuses.
    with np.errstate(over="ignore"):
        return np.array(value, dtype=np.float32)
