"""Under what the vector of a text is kept: each user's by themselves, unless told otherwise.

One that another user has paid for would tell this one, by its price and its speed, that somebody
has embedded just this text.
"""

import hashlib
from uuid import UUID


def vector_key(content_hash: bytes, user_id: UUID | None) -> bytes:
    """Return the key of a text's vector for a user; of the command line's, the hash as it is."""
    if user_id is None:
        return content_hash
    return hashlib.sha256(user_id.bytes + content_hash).digest()
