"""Vectors as they are stored: each user's own, and of one size within a run or a document."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from uuid import UUID

from promptstack.config.names import VectorType
from promptstack.repositories.content.embeddings import Vector
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.llm.answers import EmbeddingResponse
from promptstack.services.llm.errors import OddVector


def vector_key(content_hash: bytes, user_id: UUID | None, dimensions: int | None = None) -> bytes:
    """Return the key of a text's vector for a user; on the command line, the hash as it is.

    A vector that another user has paid for would tell this one, by its price and its speed, that
    somebody has embedded just this text. One whose size was asked for has a key of its own.
    """
    if dimensions is not None:
        content_hash = hashlib.sha256(b"dimensions %d:%b" % (dimensions, content_hash)).digest()
    if user_id is None:
        return content_hash
    return hashlib.sha256(user_id.bytes + content_hash).digest()


def store_vectors(
    unit: UnitOfWork,
    model: tuple[str, str],
    answers: Sequence[tuple[Sequence[bytes], EmbeddingResponse]],
    has_size: Callable[[EmbeddingModel, int], bool],
    *,
    storage: VectorType = VectorType.VECTOR,
    with_index: bool = True,
) -> Mapping[bytes, OddVector]:
    """Store the vectors that have their model's size; returns the errors of the others.

    `model` is the provider and the model's name; each answer comes with the hashes of its contents.
    If the provider has changed a model's size, the size of most of these vectors counts. But
    `has_size`, which gets the known model and the number of the new vectors, may keep the old one.
    """
    [common] = Counter(size for _, answer in answers for size in answer.sizes()).most_common(1)
    known = _model_of(unit, model, common, has_size, storage, with_index=with_index)
    hashes: list[bytes] = []
    vectors: list[Vector] = []
    errors: dict[bytes, OddVector] = {}
    for of_answer, answer in answers:
        positions, found = answer.of_size(known.dimensions)
        hashes += [of_answer[position] for position in positions]
        vectors.extend(found)  # its rows, which are not copied
        errors |= {
            hash_: OddVector(
                f"{known.provider} answered a vector of {size} numbers, and {known.model} has "
                f"{known.dimensions} here; it was not kept. Try it again. If the model was changed "
                "at the provider, first embed new texts in a run of their own."
            )
            for hash_, size in zip(of_answer, answer.sizes(), strict=True)
            if size != known.dimensions
        }
    if hashes:
        unit.embeddings.store(known, hashes, vectors)
    return errors


def _model_of(
    unit: UnitOfWork,
    model: tuple[str, str],
    common: tuple[int, int],
    has_size: Callable[[EmbeddingModel, int], bool],
    storage: VectorType,
    *,
    with_index: bool,
) -> EmbeddingModel:
    size, number = common
    for is_locked in (False, True):
        if is_locked:
            unit.embeddings.lock_models()  # another job may register its size just now
        known = unit.embeddings.find_model(*model)
        if known is not None and (known.dimensions == size or has_size(known, number)):
            return known
    found = unit.embeddings.register_model(*model, size, storage=storage, with_index=with_index)
    if known is not None:
        unit.embeddings.make_newest(found)
    return found
