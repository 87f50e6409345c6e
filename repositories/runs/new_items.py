"""New items, as COPY BINARY reads them."""

from dataclasses import dataclass
from struct import Struct

from promptstack.repositories.wire_values import for_jsonb

_LENGTH = Struct(">i")
_HEAD = Struct(">hi16sii")
_SIZE = Struct(">ii")
NULL = _LENGTH.pack(-1)
JSONB_VERSION = b"\x01"
COLUMNS = "(run_id, position, custom_id, content_hash, text, messages, size, metadata, parameters)"


@dataclass(frozen=True, slots=True)
class NewItem:
    """An item as it is handed in; JSON is given as its bytes."""

    position: int
    custom_id: str | None
    """None where it could not be read."""
    content_hash: bytes | None
    text: bytes | None
    """In UTF-8."""
    messages: bytes | None
    attributes: bytes
    parameters: bytes | None = None
    """Of its own, in place of the run's."""

    @property
    def size(self) -> int:
        """Of what is asked, in bytes."""
        own = 0 if self.parameters is None else len(self.parameters)
        return len(self.text or b"") + len(self.messages or b"") + own


def row_of(run_id: bytes, item: NewItem) -> bytes:
    """Lay an item out as COPY BINARY reads it."""
    custom_id = None if item.custom_id is None else item.custom_id.encode()
    text, messages = item.text, item.messages
    return b"".join(
        (
            _HEAD.pack(9, 16, run_id, 4, item.position),
            NULL if custom_id is None else _LENGTH.pack(len(custom_id)) + custom_id,
            NULL if item.content_hash is None else b"\x00\x00\x00\x20" + item.content_hash,
            NULL if text is None else _LENGTH.pack(len(text)) + text,
            NULL if messages is None else _jsonb(messages),
            _SIZE.pack(4, item.size),
            _jsonb(item.attributes),
            NULL if item.parameters is None else _jsonb(item.parameters),
        )
    )


def _jsonb(value: bytes) -> bytes:
    value = for_jsonb(value)
    return _LENGTH.pack(len(value) + 1) + JSONB_VERSION + value
