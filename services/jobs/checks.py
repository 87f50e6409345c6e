"""The checks of new jobs: what a caller says of one becomes a job that can be stored."""

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from promptstack.repositories.access_models import User
from promptstack.repositories.content.collections import default_collection
from promptstack.repositories.content.documents import NewDocument
from promptstack.repositories.models import JobKind
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.collections.lookup import place_of
from promptstack.services.collections.metadata import checked_metadata
from promptstack.services.errors import InvalidInput
from promptstack.services.jobs.new_job import JobDefaults, JobOptions, NewJob, written_json
from promptstack.services.jobs.prompt_terms import PromptTerms, terms_of
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.embedding_requests import EmbeddingRequest
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.requests import Fallback, GenerationRequest
from promptstack.services.text import check_name, check_storable
from promptstack.services.validation.bounds import refused_in_words
from promptstack.services.validation.ids import check_signing_secret

MAX_SOURCE_BYTES = 2_000
"""PostgreSQL refuses index entries over about 2,700 bytes."""
EVERY_JOBS = (
    "user_id",
    "api_key_id",
    "key_limits",
    "idempotency_key",
    "max_retries",
    "expires_in",
    "tags",
    "webhook",
)


class JobChecks:
    """Checks generations and documents, before any transaction.

    Checks take long for a long request, and PostgreSQL ends a transaction in which nothing happens
    for some seconds.
    """

    def __init__(
        self,
        ledger: Ledger,
        factory: LLMServiceFactory,
        defaults: JobDefaults,
        session: Session | None = None,
    ) -> None:
        """With `session`, users are looked for in its transaction."""
        self._ledger = ledger
        self._factory = factory
        self._defaults = defaults
        self._session = session
        self._preferred: dict[UUID, str | None] = {}
        self._collections: dict[tuple[UUID | None, str], UUID] = {}
        self._terms: dict[Hashable, PromptTerms] = {}
        """Checked generations, by what they say beside their prompt."""
        self._with_secrets: set[UUID | None] = set()
        """Users who have a secret that signs the webhooks of jobs."""

    def of_call(self, session: Session | None) -> "JobChecks":
        """The same for the jobs of one call, which asks once what each user prefers."""
        return JobChecks(self._ledger, self._factory, self._defaults, session)

    def generation(self, entry: Mapping[str, Any], place: str = "") -> NewJob:
        """A checked generation of a `GenerationEntry`. Raises `InvalidInput`, `NotPermitted`."""
        terms = terms_of(entry)
        if terms in self._terms:
            made = self._terms[terms].with_prompt(entry, place, self._defaults.max_text_bytes)
            if made is not None:
                return made
        checked = self._checked_generation(entry, place)
        if terms is not None:
            self._terms[terms] = PromptTerms(checked)
        return checked

    def _checked_generation(self, entry: Mapping[str, Any], place: str) -> NewJob:
        given = dict(entry)
        options = self._options(given, EVERY_JOBS)
        provider = given.pop("provider", None) or self._preferred_provider(options.user_id)
        model = self._factory.offered(provider).choose_model(
            Capability.GENERATION, given.pop("model", None)
        )
        if fallbacks := given.pop("fallbacks", ()):
            if not isinstance(fallbacks, list | tuple):
                raise InvalidInput("fallbacks must be a list, of objects with a provider each.")
            given["fallbacks"] = tuple(map(self._complete, fallbacks))
        if messages := given.pop("messages", ()):
            given["messages"] = tuple(messages)
        request = self._defaults.request_bounds.checked(
            GenerationRequest, provider=provider, model=model, **given
        )
        for target in request.targets():
            if options.key_limits is not None:
                options.key_limits.check(target.provider, target.model)
            self._factory.service_class(target.provider).check_request(target)
        body = request.model_dump(mode="json", exclude_defaults=True)
        written = written_json(body)
        self._check_size(written, "The request")
        return NewJob(
            JobKind.GENERATION, provider, request.model, body, written, options, place=place
        )

    def embedding(self, entry: Mapping[str, Any], place: str = "") -> NewJob:
        """A checked document of an `EmbeddingEntry`. Raises `InvalidInput`."""
        given = dict(entry)
        options = self._options(given, (*EVERY_JOBS, "chunk_tokens"))
        provider = given.pop("provider", None) or self._defaults.embedding_provider
        model = self._factory.offered(provider).choose_model(
            Capability.EMBEDDING, given.pop("model", None)
        )
        if options.key_limits is not None:
            options.key_limits.check(provider, model)
        text, source = given.pop("text", ""), given.pop("source", "")
        collection_id = self._collection(given.pop("collection", None), options.user_id)
        metadata = checked_metadata(given.pop("metadata", None), self._defaults.max_metadata_bytes)
        if given:
            names = ", ".join(sorted(map(str, given)))[:200]
            raise InvalidInput(f"The embedding of a document has no {names!a}; leave it out.")
        if not isinstance(text, str) or not isinstance(source, str):
            raise InvalidInput("A document has a text and a source, which are both text.")
        check_storable(text, "The document")
        if not text.strip():
            raise InvalidInput("The document is empty; there is nothing to embed.")
        check_source(source)
        self._check_size(text, "The document")
        content_hash = hashlib.sha256(text.encode()).digest()
        body: dict[str, Any] = {"source": source, "content_hash": content_hash.hex()}
        if options.chunk_tokens is not None:
            body["chunk_tokens"] = options.chunk_tokens
        if collection_id != default_collection(options.user_id):
            body["collection_id"] = str(collection_id)
        if metadata is not None:
            body["metadata_hash"] = hashlib.sha256(metadata.encode()).hexdigest()
        document = NewDocument(options.user_id, collection_id, source, text, content_hash, metadata)
        return NewJob(
            JobKind.EMBEDDING, provider, model, body, written_json(body), options, document, place
        )

    def vectors(self, entry: Mapping[str, Any]) -> NewJob:
        """A checked job for the vectors of a `VectorsEntry`. Raises `InvalidInput`."""
        given = dict(entry)
        options = self._options(given, EVERY_JOBS)
        provider = given.pop("provider", None) or self._defaults.embedding_provider
        service = self._factory.offered(provider)
        model = service.choose_model(Capability.EMBEDDING, given.pop("model", None))
        if options.key_limits is not None:
            options.key_limits.check(provider, model)
        with refused_in_words():
            request = EmbeddingRequest.model_validate(given)
        service.check_embedding(model, request.inputs, request.dimensions)
        body = request.model_dump(mode="json", exclude_none=True)
        written = written_json(body)
        self._check_size(written, "The request")
        return NewJob(JobKind.VECTORS, provider, model, body, written, options)

    def _options(self, given: dict[str, Any], names: Iterable[str]) -> JobOptions:
        """Take a job's own options from what was given."""
        options = _options(given, names)
        if options.webhook is not None:
            self._defaults.webhook_rules.check(options.webhook.url)
            if options.user_id not in self._with_secrets:
                with self._unit() as work:
                    check_signing_secret(work, options.user_id)
                self._with_secrets.add(options.user_id)
        return options

    def _complete(self, given: Fallback | Mapping[str, Any]) -> Fallback:
        """Name the model of a fallback. Raises `InvalidInput`."""
        if not isinstance(given, Fallback | Mapping):
            raise InvalidInput("A fallback must be an object, such as {'provider': 'anthropic'}.")
        with refused_in_words():
            fallback = given if isinstance(given, Fallback) else Fallback.model_validate(given)
        service = self._factory.offered(fallback.provider)
        model = service.choose_model(Capability.GENERATION, fallback.model)
        return fallback.model_copy(update={"model": model})

    def _collection(self, given: UUID | str | None, user_id: UUID | None) -> UUID:
        """The id of the collection that a document goes to. Raises `NotFound`."""
        if given is None:
            return default_collection(user_id)
        key = (user_id, str(given))
        if key not in self._collections:
            with self._unit() as work:
                self._collections[key] = place_of(work, given, user_id)
        return self._collections[key]

    def _preferred_provider(self, user_id: UUID | None) -> str:
        if user_id is not None and user_id not in self._preferred:
            user = self._find_user(user_id)
            self._preferred[user_id] = user.preferred_provider if user else None
        preferred = self._preferred.get(user_id) if user_id else None
        return preferred or self._defaults.generation_provider

    def _find_user(self, user_id: UUID) -> User | None:
        with self._unit() as work:
            return work.users.get(user_id)

    @contextmanager
    def _unit(self) -> Iterator[UnitOfWork]:
        """The caller's transaction, or one of its own."""
        if self._session is not None:
            yield self._ledger.join(self._session)
        else:
            with self._ledger.transaction() as work:
                yield work

    def _check_size(self, text: str, what: str) -> None:
        most = self._defaults.max_text_bytes
        # No character has more than four bytes.
        size = 0 if 4 * len(text) <= most else len(text.encode("utf-8", "surrogatepass"))
        if size > most:
            raise InvalidInput(
                f"{what} has {size:,} bytes; at most {most:,} are accepted (MAX_TEXT_BYTES). "
                "Split it."
            )


def check_source(source: str) -> None:
    """Raise `InvalidInput` if a document can't have this source."""
    check_name(source, "The source")
    if not 0 < len(source.encode()) <= MAX_SOURCE_BYTES:
        raise InvalidInput(f"The source must have 1 to {MAX_SOURCE_BYTES:,} UTF-8 bytes.")


def _options(given: dict[str, Any], names: Iterable[str]) -> JobOptions:
    """Take a job's own options from what was given."""
    values = {name: given.pop(name) for name in names if name in given}
    if "bulk" in given:
        values["is_bulk"] = given.pop("bulk")
    with refused_in_words():
        return JobOptions(**values)
