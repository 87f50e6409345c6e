"""Detects the encoding of a text by its first bytes."""

from dataclasses import dataclass

MARKS = {
    b"\xef\xbb\xbf": "utf-8",
    b"\xff\xfe\x00\x00": "utf-32-le",
    b"\x00\x00\xfe\xff": "utf-32-be",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
}
"""Byte order marks, the longer ones first: no text begins with the NUL that a shorter one left."""
NULS: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
}
"""Which of the first four bytes are NUL where there is no mark: no text in UTF-8 has any."""


@dataclass(frozen=True)
class Encoding:
    """How a text is encoded."""

    name: str
    mark: bytes = b""
    """The byte order mark, which is not part of the text."""


def encoding_of(start: bytes) -> Encoding:
    """Detect the encoding by at most four first bytes; UTF-8 unless they say otherwise."""
    mark = next((mark for mark in MARKS if start.startswith(mark)), None)
    if mark is not None:
        return Encoding(MARKS[mark], mark)
    return Encoding(NULS.get(tuple(byte == 0 for byte in start[:4]), "utf-8"))
