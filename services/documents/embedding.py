"""What a worker does with an embedding job: document, chunks, batched calls, vectors."""

import time
from collections import deque
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from math import ceil, log2
from uuid import UUID

from promptstack.config.errors import PromptStackError
from promptstack.config.settings import MIN_CHUNK_TOKENS
from promptstack.repositories.content.documents import Passage
from promptstack.repositories.errors import ClaimLost
from promptstack.repositories.jobs.records import Claim
from promptstack.repositories.models import Document
from promptstack.repositories.session import UnitOfWork
from promptstack.services.documents.chunking import ROOM, Chunker
from promptstack.services.documents.vectors import store_vectors, vector_key
from promptstack.services.errors import EmbeddedElsewhere, NotFound, WorkersLost
from promptstack.services.execution.content_calls import Call, Content
from promptstack.services.execution.failure_policy import bisect, is_bisected, is_retried
from promptstack.services.execution.job_context import JobContext
from promptstack.services.execution.provider_calls import ProviderCall, ProviderCalls
from promptstack.services.limiter.errors import RequestTooLarge
from promptstack.services.limiter.terms import Need
from promptstack.services.llm.errors import ContextTooLong, ProviderError
from promptstack.services.llm.packing import pack
from promptstack.services.llm.pool import ProviderPool

SHARED_POLL_SECONDS = 0.25
SHARED_PATIENCE_SECONDS = 3.0
"""How long a job waits, in a worker, for passages that another one embeds; then in the queue."""
SHARED_RETRY_SECONDS = 1.0
LONGEST_SEARCH = 12
"""Deaths after which the largest call, of 2,048 texts, has been halved down to one text."""


class EmbeddingService:
    """Embeds a document for each job, and of it only what has no vector yet."""

    def __init__(
        self,
        calls: ProviderCalls,
        providers: ProviderPool,
        chunker: Chunker,
        *,
        shares_vectors: bool = False,
    ) -> None:
        """Take `shares_vectors`: whether documents take vectors that others have paid for."""
        self._calls = calls
        self._providers = providers
        self._chunker = chunker
        self._shares_vectors = shares_vectors
        self._fitting: dict[tuple[str, str], int] = {}
        """How long the chunks were that a model took after longer ones, in our tokens."""

    def embed(self, job: JobContext) -> None:
        """Embed the job's document, and store the job's result with that."""
        claim = job.claim
        # Before its content is looked at, which may be what kills.
        _check_deaths(claim, LONGEST_SEARCH)
        # Where another may have paid, no number may tell it.
        tells = not self._shares_vectors or claim.user_id is None
        document_id = UUID(claim.request["document_id"])
        cutting = self._cutting(claim)
        began_to_wait = None
        while True:
            work = self._prepare(job, document_id, cutting)
            job.show(work.done, work.total)
            try:
                self._pay(job, work)
            except TextTooLong as found:
                unpaid = [one for one in work.reserved if one.content_hash in found.unpaid]
                cutting = self._cut_smaller(job, document_id, cutting, unpaid, found)
                continue
            succeed = partial(
                _succeed, claim=claim, document_id=document_id, total=work.total, tells=tells
            )
            if not work.is_shared and job.ledger.write(succeed):
                break
            # Never while there is something to pay for here: two jobs would wait for each other.
            began_to_wait = began_to_wait or time.monotonic()
            if time.monotonic() - began_to_wait > SHARED_PATIENCE_SECONDS:
                raise EmbeddedElsewhere(
                    "Another job embeds the same passages; this one waits for its vectors.",
                    retry_after=SHARED_RETRY_SECONDS,
                )
            job.handle.pause(SHARED_POLL_SECONDS)

    def _cutting(self, claim: Claim) -> "Cutting":
        """How the job's document is cut: as was asked for, and so that its model takes it."""
        service = self._providers.get(claim.provider)
        tokens = claim.request.get("chunk_tokens")
        asked = self._chunker if tokens is None else Chunker(tokens)
        asked = asked.by(service.facts_of(claim.model).tokenizer)
        fits = asked.taken_by(service.limits_of(claim.model).text_tokens)
        return Cutting(asked, fits.at_most(self._fitting.get((claim.provider, claim.model))))

    def _pay(self, job: JobContext, work: "Work") -> None:
        """Embed the passages that are this job's to pay for."""
        service = self._providers.get(job.claim.provider)
        # The same passage may stand in a document twice; it is paid for once.
        places: dict[bytes, list[Passage]] = {}
        for passage in work.reserved:
            places.setdefault(passage.content_hash, []).append(passage)
        contents = [
            Content(hash_, tuple(passage.position for passage in same), same[0].text)
            for hash_, same in places.items()
        ]
        done = work.done
        limits = service.limits_of(job.claim.model)
        batches = list(pack(contents, limits, service.estimate_tokens))
        coming = deque(Call(batch, job.claim.failures) for batch in _narrowed(job.claim, batches))
        while coming:
            # By now, a refused call may have told how many texts one may have.
            call, *rest = coming.popleft().split(service.limits_of(job.claim.model).items)
            coming.extendleft(reversed(rest))
            enough = done + sum(len(content.positions) for content in call.contents)
            try:
                faults = self._embed_batch(job, call, enough, work.total, has_some=done > 0)
            except (ProviderError, RequestTooLarge) as error:
                if isinstance(error, ContextTooLong) and len(call.contents) == 1:
                    left = {hash_ for one in (call, *coming) for hash_ in one.hashes}
                    raise TextTooLong(call.contents[0].text, left, error) from error
                if is_retried(call, error, job.claim.max_retries) or not is_bisected(call, error):
                    if len(call.contents) == 1:
                        _about_chunk(error, call.contents[0], work.total)
                    raise
                coming.extendleft(reversed(bisect(call, error)))
                continue
            for content in call.contents:
                if content.hash in faults:
                    raise _about_chunk(faults[content.hash], content, work.total)
            done = enough
            job.claim = replace(job.claim, deaths=0)  # as in the ledger, where it got on
            job.show(done, work.total)

    def _embed_batch(
        self, job: JobContext, call: Call, done: int, total: int, *, has_some: bool
    ) -> Mapping[bytes, PromptStackError]:
        """Make one call, and store its vectors with the progress; what is wrong with others.

        `has_some` says whether the document has vectors already.
        """
        claim, texts = job.claim, [content.text for content in call.contents]
        outcome = self._calls.make(
            job,
            ProviderCall(
                provider=claim.provider,
                model=claim.model,
                ask=lambda llm: llm.embed(texts, claim.model, claim.user_id),
                need=lambda llm: Need(sum(map(llm.estimate_tokens, texts)), is_bulk=claim.is_bulk),
                items=len(texts),
                is_suspect=call.waste_budget is not None,
            ),
        )

        def store(unit: UnitOfWork) -> Mapping[bytes, PromptStackError]:
            model = claim.provider, claim.model
            answers = [(call.hashes, outcome.answer)]
            faults = store_vectors(unit, model, answers, lambda *_: has_some)
            kept = done - sum(len(one.positions) for one in call.contents if one.hash in faults)
            # Vectors are kept also when the job was cancelled; the next step then meets that.
            with suppress(ClaimLost):
                unit.steps.set_progress(claim, kept, total)
            # The job's row before its reservations, as in the reconciler.
            unit.reservations.release(claim, call.hashes)
            return faults

        return self._calls.store(outcome, store)

    def _cut_smaller(
        self,
        job: JobContext,
        document_id: UUID,
        cutting: "Cutting",
        unpaid: Sequence[Passage],
        found: "TextTooLong",
    ) -> "Cutting":
        """Cut what is unpaid into chunks that the model takes; what has vectors stays as it is.

        Raises `ContextTooLong` where no smaller chunk is left to try.
        """
        claim, source = job.claim, job.claim.request["source"]
        fits = cutting.fits.at_most(found.tokens(cutting.fits.size(found.text, source)))
        while len(fits.cut(found.text, source)) == 1:
            if fits.tokens == MIN_CHUNK_TOKENS:
                raise found.error
            fits = fits.at_most(fits.tokens * 3 // 4)
        pieces = {passage.content_hash: fits.cut(passage.text, source) for passage in unpaid}
        owner = self._owner(claim)

        def store(unit: UnitOfWork) -> None:
            unit.steps.check_claim(claim)
            document = unit.documents.lock(document_id)
            if document is None or document.chunked_hash != self._fingerprint(
                document, cutting, claim
            ):
                return  # it is looked at anew
            cut: list[Passage] = []
            for chunk in unit.documents.chunks(document_id):
                for piece in pieces.get(chunk.content_hash, []):
                    key = vector_key(piece.content_hash, owner)
                    cut.append(Passage(len(cut), chunk.start + piece.start, piece.text, key))
                if chunk.content_hash not in pieces:
                    cut.append(replace(chunk, position=len(cut)))
            unit.documents.replace_chunks(document, cut, document.chunked_hash)
            unit.reservations.release(claim, list(pieces))

        job.ledger.write(store)
        # Other documents are like this one, but for what few have, such as long numbers.
        limit = found.error.limit or 0  # fewer than in any chunk are no model's
        least = (limit if limit >= MIN_CHUNK_TOKENS else cutting.asked.tokens) // 2
        self._fitting[claim.provider, claim.model] = max(fits.tokens, least)
        return replace(cutting, fits=fits)

    def _prepare(self, job: JobContext, document_id: UUID, cutting: "Cutting") -> "Work":
        """Cut the document into chunks, if its text is new, and see which lack a vector.

        It is cut outside of any transaction, as that may take seconds; so this may have to begin
        anew.
        """
        cut: Cut | None = None
        while True:
            found = job.ledger.write(partial(self._look, job.claim, document_id, cutting, cut))
            if isinstance(found, Work):
                return found
            _check_deaths(job.claim, 0)  # nothing of it can be cut smaller yet
            passages = cutting.fits.cut(found.text, found.source)
            owner = self._owner(job.claim)
            keyed = [
                replace(passage, content_hash=vector_key(passage.content_hash, owner))
                for passage in passages
            ]
            cut = Cut(found.content_hash, passages, keyed)

    def _fingerprint(self, document: Document, cutting: "Cutting", claim: Claim) -> bytes:
        """Of what was asked for: chunks that were cut smaller than that, by need, stay so."""
        recipe = cutting.asked.fingerprint(document.content_hash, document.source)
        return vector_key(recipe, self._owner(claim))

    def _owner(self, claim: Claim) -> UUID | None:
        """Whose vectors a job takes and leaves; None where they are shared."""
        return None if self._shares_vectors else claim.user_id

    def _look(
        self,
        claim: Claim,
        document_id: UUID,
        cutting: "Cutting",
        cut: "Cut | None",
        unit: UnitOfWork,
    ) -> "Document | Work":
        """Store a cut if it is still that of the text; what is to embed, or else what to cut."""
        # The job's row before its reservations, as in the reconciler.
        unit.steps.check_claim(claim)
        document = unit.documents.lock(document_id)
        if document is None:
            raise NotFound("The document was deleted before it was embedded.")
        fingerprint = self._fingerprint(document, cutting, claim)
        if document.chunked_hash != fingerprint:
            if cut is None or cut.content_hash != document.content_hash:
                return document
            _keep_vectors(unit, document, cut, claim.user_id)
            unit.documents.replace_chunks(document, cut.keyed, fingerprint)
        total = unit.documents.count_chunks(document_id)
        missing = unit.documents.chunks_without_vector(document_id, claim.provider, claim.model)
        work = _reserve(unit, claim, total, missing)
        unit.steps.set_progress(claim, work.done, total)
        return work


class TextTooLong(Exception):
    """One chunk alone is longer than its model takes."""

    def __init__(self, text: str, unpaid: Set[bytes], error: ContextTooLong) -> None:
        super().__init__(str(error))
        self.text = text
        self.unpaid = unpaid
        """The contents of all chunks that are not embedded yet."""
        self.error = error

    def tokens(self, before: int) -> int:
        """How many of our tokens a text may have that has `before`: by what the provider said.

        Half where it said nothing, and not less than an eighth at once.
        """
        limit, given = self.error.limit, self.error.given
        if limit is None or given is None:
            return before // 2
        # Other chunks are denser than this one.
        return max(before // 8, int(0.9 * before * (limit - ROOM) / given))


@dataclass(frozen=True)
class Cutting:
    """How a document is cut."""

    asked: Chunker
    fits: Chunker
    """With chunks that its model takes, as far as is known."""


@dataclass(frozen=True)
class Cut:
    """The chunks of one version of a document."""

    content_hash: bytes
    passages: Sequence[Passage]
    keyed: Sequence[Passage]
    """The same, by the keys of their vectors."""


@dataclass(frozen=True)
class Work:
    """What there is to do for a document."""

    total: int
    done: int
    """How many of its chunks have a vector already."""
    reserved: Sequence[Passage]
    """What this job is to pay for."""

    @property
    def is_shared(self) -> bool:
        """Whether another job embeds some of its passages now."""
        return self.done + len(self.reserved) < self.total


def _keep_vectors(unit: UnitOfWork, document: Document, cut: Cut, user_id: UUID | None) -> None:
    """Let a document keep the vectors of passages that had another key when it was cut before.

    That was so before users' vectors were apart, and is where `SHARE_VECTORS` was changed.
    """
    before = unit.documents.chunk_keys(document.id)
    keys: dict[bytes, bytes] = {}
    for plain, keyed in zip(cut.passages, cut.keyed, strict=True):
        for old in (plain.content_hash, vector_key(plain.content_hash, user_id)):
            if old in before and old != keyed.content_hash:
                keys[old] = keyed.content_hash
    if keys:
        unit.embeddings.copy_vectors(keys)


def _reserve(unit: UnitOfWork, claim: Claim, total: int, missing: Sequence[Passage]) -> Work:
    """Reserve what has no vector, so that no two jobs pay for the same passage."""
    if not missing:
        return Work(total, total, [])
    taken = unit.reservations.take(claim, [passage.content_hash for passage in missing])
    # Another job may have stored some, and given up their reservation, since we looked.
    stored = unit.embeddings.find_stored(claim.provider, claim.model, list(taken))
    unit.reservations.release(claim, list(stored))
    reserved = [
        passage
        for passage in missing
        if passage.content_hash in taken and passage.content_hash not in stored
    ]
    late = sum(passage.content_hash in stored for passage in missing)
    return Work(total, total - len(missing) + late, reserved)


def _narrowed(claim: Claim, batches: Sequence[Sequence[Content]]) -> list[Sequence[Content]]:
    """Make calls smaller while workers die over them: from the second death on, each halves them.

    So what kills stands alone in the end; all before it is embedded, and begins the count anew.
    Raises `WorkersLost` where it has stood alone for as many deaths as the job has tries.
    """
    halvings = max(0, claim.deaths - 1)
    largest = max(map(len, batches), default=1)
    _check_deaths(claim, 0 if largest == 1 else 1 + ceil(log2(largest)))
    size = max(1, largest >> halvings)
    return [
        batch[first : first + size] for batch in batches for first in range(0, len(batch), size)
    ]


def _check_deaths(claim: Claim, search: int) -> None:
    if claim.deaths > search + claim.max_retries:
        raise WorkersLost(
            f"{claim.deaths} workers died one after the other while they ran this job: it is not "
            "tried again by itself, as it may be what ends workers."
        )


def _about_chunk(error: PromptStackError, content: Content, total: int) -> PromptStackError:
    if total > 1:
        error.add(f"This is about chunk {content.positions[0] + 1} of {total}.")
    return error


def _succeed(unit: UnitOfWork, claim: Claim, document_id: UUID, total: int, *, tells: bool) -> bool:
    """End the job; not where the document was cut anew meanwhile, for another model."""
    if unit.documents.count_chunks(document_id) > total:
        return False
    totals = unit.attempts.totals(claim.job_id)
    model = unit.embeddings.find_model(claim.provider, claim.model)
    result = {
        "document_id": str(document_id),
        "chunks": total,
        "dimensions": model.dimensions if model else None,
    }
    if tells:
        result |= {
            "embedded": totals.items,
            "reused": max(total - totals.items, 0),
            "provider_calls": totals.calls,
            "tokens_used": totals.tokens,
        }
    unit.steps.succeed(claim, result)
    return True
