"""Vectors as OpenAI answers them: of direct calls, and of the lines of a batch."""

from collections.abc import Sequence
from typing import Any, Literal

import orjson
from pybase64 import b64encode_as_string

EncodingFormat = Literal["float", "base64"]


def embedding_list(
    model: str, vectors: Sequence[bytes], tokens: int, encoding_format: EncodingFormat = "float"
) -> bytes:
    """Return the JSON of an answer: `vectors`, as little-endian float32, in their order."""
    # One by one: orjson lets no other thread run before it is done.
    data = b",".join(
        orjson.dumps(embedding_object(*one, encoding_format), option=orjson.OPT_SERIALIZE_NUMPY)
        for one in enumerate(vectors)
    )
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    rest = orjson.dumps({"model": model, "usage": usage})
    return b'{"object":"list","data":[%b],%b' % (data, rest[1:])


def embedding_object(
    index: int, vector: bytes, encoding_format: EncodingFormat = "float"
) -> dict[str, Any]:
    """Return one vector of an answer, for orjson with OPT_SERIALIZE_NUMPY.

    Its numbers are an array: orjson writes one at a tenth of the cost of a list, and each number in
    the fewest digits that are read as the same float32.
    """
    if encoding_format == "base64":
        numbers: Any = b64encode_as_string(vector)
    else:
        import numpy as np  # noqa: PLC0415 - it takes 16 MB, and not all who import this need it

        numbers = np.frombuffer(vector, "<f4")
    return {"object": "embedding", "index": index, "embedding": numbers}
