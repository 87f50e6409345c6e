"""What a document's job writes. A write may run twice, so it changes nothing but the ledger."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.repositories.content.documents import Passage
from promptstack.repositories.content_models import Document
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.documents.chunk_sizes import Cutting
from promptstack.services.documents.vectors import store_vectors, vector_key
from promptstack.services.errors import NotFound
from promptstack.services.execution.content_calls import Call, reserve
from promptstack.services.llm.answers import EmbeddingResponse


@dataclass(frozen=True)
class Cut:
    """The chunks of one version of a document."""

    content_hash: bytes
    passages: Sequence[Passage]


@dataclass(frozen=True)
class OpenChunks:
    """What is left to embed of a document."""

    total: int
    done: int
    """The chunks that have a vector."""
    reserved: Sequence[Passage]
    """The chunks that this job is to pay for."""

    @property
    def is_shared(self) -> bool:
        """Whether another job embeds some of the chunks now."""
        return self.done + len(self.reserved) < self.total


class DocumentStore:
    """Writes the chunks, vectors and result of one job's document."""

    def __init__(self, claim: Claim, *, shares_vectors: bool) -> None:
        self._claim = claim
        self._document_id = UUID(claim.request["document_id"])
        self._owner = None if shares_vectors else claim.user_id
        """Whose vectors the job uses and stores; None if all users share them."""
        # If another user may have paid, no number may show it.
        self._shows_cost = not shares_vectors or claim.user_id is None

    def find_open(
        self, unit: UnitOfWork, cutting: Cutting, cut: Cut | None
    ) -> OpenChunks | Document:
        """Reserve the chunks that have no vector; return the document if it is to be cut first.

        Stores `cut`, if it is of the document's text as it is now.
        """
        claim = self._claim
        # Lock the job's row before its reservations, as the reconciler does.
        unit.steps.check_claim(claim)
        document = self._lock(unit)
        fingerprint = self._fingerprint(document, cutting)
        if document.chunked_hash != fingerprint:
            if cut is None or cut.content_hash != document.content_hash:
                return document
            self._store_cut(unit, document, cut, fingerprint)
        total = unit.documents.count_chunks(document.id)
        missing = unit.documents.chunks_without_vector(document.id, claim.provider, claim.model)
        ours, stored = reserve(
            unit,
            claim,
            [passage.content_hash for passage in missing],
            lambda hashes: unit.embeddings.find_stored(claim.provider, claim.model, hashes),
        )
        late = sum(passage.content_hash in stored for passage in missing)
        reserved = [passage for passage in missing if passage.content_hash in ours]
        found = OpenChunks(total, total - len(missing) + late, reserved)
        unit.steps.set_progress(claim, found.done, total)
        return found

    def replace_chunks(
        self, unit: UnitOfWork, cutting: Cutting, pieces: Mapping[bytes, Sequence[Passage]]
    ) -> None:
        """Replace chunks by smaller `pieces`, unless the document was cut anew meanwhile."""
        unit.steps.check_claim(self._claim)
        document = self._lock(unit)
        if document.chunked_hash != self._fingerprint(document, cutting):
            return
        cut: list[Passage] = []
        for chunk in unit.documents.chunks(document.id):
            for piece in pieces.get(chunk.content_hash, []):
                key = self._key(piece)
                cut.append(Passage(len(cut), chunk.start + piece.start, piece.text, key))
            if chunk.content_hash not in pieces:
                cut.append(replace(chunk, position=len(cut)))
        unit.documents.replace_chunks(document, cut, document.chunked_hash)
        unit.reservations.release(self._claim, list(pieces))

    def store(
        self, unit: UnitOfWork, call: Call, answer: EmbeddingResponse, done: int, total: int
    ) -> Mapping[bytes, PromptStackError]:
        """Store a call's vectors, and the progress from `done` chunks on.

        Returns the errors of vectors that can't be stored.
        """
        claim = self._claim
        answers = [(call.hashes, answer)]
        # A document that has vectors keeps their size.
        errors = store_vectors(unit, (claim.provider, claim.model), answers, lambda *_: done > 0)
        done += sum(len(one.positions) for one in call.contents if one.hash not in errors)
        # Store the vectors even if the job was cancelled; the next step raises `ClaimLost`.
        with suppress(ClaimLost):
            unit.steps.set_progress(claim, done, total)
        # After the job's row, as in `find_open`.
        unit.reservations.release(claim, call.hashes)
        return errors

    def succeed(self, unit: UnitOfWork, total: int) -> bool:
        """End the job, unless another job has cut the document anew meanwhile."""
        claim = self._claim
        if unit.documents.count_chunks(self._document_id) > total:
            return False
        totals = unit.attempts.totals(claim.job_id)
        model = unit.embeddings.find_model(claim.provider, claim.model)
        result = {
            "document_id": str(self._document_id),
            "chunks": total,
            "dimensions": model.dimensions if model else None,
        }
        if self._shows_cost:
            result |= {
                "embedded": totals.items,
                "reused": max(total - totals.items, 0),
                "provider_calls": totals.calls,
                "tokens_used": totals.tokens,
            }
        unit.steps.succeed(claim, result)
        return True

    def _lock(self, unit: UnitOfWork) -> Document:
        document = unit.documents.lock(self._document_id)
        if document is None:
            raise NotFound("The document was deleted before it was embedded.")
        return document

    def _fingerprint(self, document: Document, cutting: Cutting) -> bytes:
        """Identify how the caller asked to cut it: chunks that had to be smaller stay so."""
        recipe = cutting.asked.fingerprint(document.content_hash, document.source)
        return vector_key(recipe, self._owner)

    def _key(self, passage: Passage) -> bytes:
        return vector_key(passage.content_hash, self._owner)

    def _store_cut(
        self, unit: UnitOfWork, document: Document, cut: Cut, fingerprint: bytes
    ) -> None:
        """Store new chunks. Passages whose vectors had another key keep them.

        Keys changed when each user got their own vectors, and change with `SHARE_VECTORS`.
        """
        before = unit.documents.chunk_keys(document.id)
        keyed = [replace(one, content_hash=self._key(one)) for one in cut.passages]
        keys: dict[bytes, bytes] = {}
        for plain, new in zip(cut.passages, keyed, strict=True):
            for old in (plain.content_hash, vector_key(plain.content_hash, self._claim.user_id)):
                if old in before and old != new.content_hash:
                    keys[old] = new.content_hash
        if keys:
            unit.embeddings.copy_vectors(keys)
        unit.documents.replace_chunks(document, keyed, fingerprint)
