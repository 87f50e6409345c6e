"""Search: the passages nearest in meaning to a query, within collections or a run."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack
from uuid import UUID

from pydantic import JsonValue

from promptstack.repositories.access_models import Tier
from promptstack.repositories.content.passages import Match, SearchScope, Spans
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.access.key_terms import KeyLimits
from promptstack.services.collections.lookup import ALL, DEFAULT_NAME, find_collection, read_name
from promptstack.services.documents.query_vectors import Asker, QueryVectors
from promptstack.services.errors import InvalidInput, NotFound
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.text import check_storable, check_storable_json
from promptstack.services.validation.ids import read_id

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MAX_RESULTS = 1_000
MAX_QUERY_CHARACTERS = 10_000
MAX_COLLECTIONS = 100
"""Named in one search."""
HIGHLIGHTED = 100
"""Matches, the best ones, in which words of the query are looked for."""
FUSED_FROM = 4
"""A hybrid search ranks so many times as many passages as it is to return."""
RANK_CONSTANT = 60
"""Of reciprocal rank fusion: the larger, the less the first places count before the next ones
(Cormack, Clarke and Büttcher, 2009)."""


class SearchKeywords(TypedDict, total=False):
    """What can be said of a search beside its query."""

    provider: str | None
    model: str | None
    """Of the passages."""
    collections: Sequence[UUID | str] | None
    """Names or ids. Unless said, the user's `default` one; `all` are all of the user's own."""
    run_id: UUID | str | None
    """In place of collections: the items of one run."""
    source: str | None
    """Which a document or item must have."""
    where: Mapping[str, JsonValue] | None
    """Metadata that it must have."""
    user_id: UUID | None
    api_key_id: UUID | None
    """The key it comes with, whose budget pays."""
    key_limits: KeyLimits | None
    """Whom the key may ask."""
    tier: Tier
    reaches_all: bool
    """Whether other users' collections and runs may be named, by their ids."""


@dataclass(frozen=True)
class _Asked:
    """The same, with what holds where nothing is said."""

    provider: str | None = None
    model: str | None = None
    collections: Sequence[UUID | str] | None = None
    run_id: UUID | str | None = None
    source: str | None = None
    where: Mapping[str, JsonValue] | None = None
    user_id: UUID | None = None
    api_key_id: UUID | None = None
    key_limits: KeyLimits | None = None
    tier: Tier = Tier.FREE
    reaches_all: bool = False

    @property
    def asker(self) -> Asker:
        """Who asks."""
        return Asker(self.user_id, self.api_key_id, self.tier)

    @property
    def owner(self) -> UUID | None:
        """Whose collections and runs may be named by an id; None: everybody's."""
        return None if self.reaches_all else self.user_id

    def check(self) -> None:
        """Raise `InvalidInput` for what can't be searched."""
        check_storable_json(dict(self.where or {}), "The condition")
        check_storable(self.source or "", "The source")
        if self.collections is None:
            return
        if self.run_id is not None:
            raise InvalidInput("A search is in collections or in a run; name one of the two.")
        if isinstance(self.collections, str) or not 1 <= len(self.collections) <= MAX_COLLECTIONS:
            raise InvalidInput(
                f"A search names a list of 1 to {MAX_COLLECTIONS} collections, or `{ALL}` in it."
            )


class SearchService:
    """Finds passages of documents, and items of runs."""

    def __init__(
        self,
        ledger: Ledger,
        factory: LLMServiceFactory,
        vectors: QueryVectors,
        *,
        default_provider: str,
    ) -> None:
        self._ledger = ledger
        self._factory = factory
        self._vectors = vectors
        self._default_provider = default_provider

    def search(
        self,
        query: str,
        *,
        limit: int = 5,
        hybrid: bool = False,
        **how: Unpack[SearchKeywords],
    ) -> list[Match]:
        """Return up to `limit` passages, best first.

        The query is embedded by the model of the passages. With `hybrid`, its words count, too:
        passages that have them come up. Raises `InvalidInput`, `NotFound` where the model has no
        vectors or there is no such collection or run, and what the limiter, budgets and the
        provider raise.
        """
        _check_query(query)
        asked, scope, known = self._prepare(limit, how)
        vector = self._vectors.of(query, known, asked.asker)
        found = self._nearest(known, vector, limit * (FUSED_FROM if hybrid else 1), scope)
        with self._ledger.transaction() as unit:
            words = _Words(unit, query, scope)
            return words.highlighted(words.fused(found, limit) if hybrid else found)

    def search_vector(
        self,
        vector: "npt.NDArray[np.float32]",
        *,
        limit: int = 5,
        **how: Unpack[SearchKeywords],
    ) -> list[Match]:
        """Do the same for a vector that this model made, among those of its size."""
        _, scope, known = self._prepare(limit, how)
        return self._nearest(known, vector, limit, scope)

    def _prepare(
        self, limit: int, how: SearchKeywords
    ) -> tuple[_Asked, SearchScope, Sequence[EmbeddingModel]]:
        """What is asked, where it is looked for, and the sizes of the model, newest first."""
        asked = _Asked(**how)
        asked.check()
        if not 1 <= limit <= MAX_RESULTS:
            raise InvalidInput(f"The limit must be between 1 and {MAX_RESULTS}.")
        provider = asked.provider or self._default_provider
        model = self._factory.service_class(provider).choose_model(
            Capability.EMBEDDING, asked.model
        )
        if asked.key_limits is not None:
            asked.key_limits.check(provider, model)
        with self._ledger.transaction() as unit:
            scope = _scope(unit, asked)
            known = unit.embeddings.dimensions_of(provider, model)
        if not known:
            raise NotFound(f"Nothing has been embedded with {provider}/{model} yet.")
        return asked, scope, known

    def _nearest(
        self,
        known: Sequence[EmbeddingModel],
        vector: "npt.NDArray[np.float32]",
        limit: int,
        scope: SearchScope,
    ) -> list[Match]:
        by_size = {one.dimensions: one for one in known}
        stored = by_size.get(vector.size)
        if stored is None:
            sizes = " or ".join(map(str, by_size))
            raise InvalidInput(
                f"The query's vector has {vector.size} numbers, and those of {known[0].provider}/"
                f"{known[0].model} that are kept have {sizes}. Was the model changed at the "
                "provider? Embed the texts again, then search."
            )
        with self._ledger.transaction() as unit:
            return unit.passages.search(stored, vector, limit, scope)


class _Words:
    """The words of a query, in the languages of the collections that are searched."""

    def __init__(self, unit: UnitOfWork, query: str, scope: SearchScope) -> None:
        self._unit = unit
        self._query = query
        self._scope = scope
        self._languages = unit.words.languages(scope.collections)

    def fused(self, nearest: Sequence[Match], limit: int) -> list[Match]:
        """The best of those nearest in meaning and those that have the words of the query.

        Each is scored by its places in both (reciprocal rank fusion).
        """
        found: dict[Any, Match] = {}
        scores: dict[Any, float] = {}
        for ranked in (nearest, self._with_words(nearest, limit * FUSED_FROM)):
            for place, match in enumerate(ranked, 1):
                found.setdefault(match.key, match)
                scores[match.key] = scores.get(match.key, 0.0) + 1 / (RANK_CONSTANT + place)
        best = sorted(found, key=lambda key: -scores[key])[:limit]
        return [replace(found[key], score=scores[key]) for key in best]

    def _with_words(self, nearest: Sequence[Match], limit: int) -> list[Match]:
        """Passages with the words, best first: chunks, and of items the nearest ones.

        An index of the words of all items would cost runs more than it is worth.
        """
        found: list[Match] = []
        for language in sorted(set(self._languages.values())):
            of_language = [id_ for id_, one in self._languages.items() if one == language]
            scope = replace(self._scope, collections=of_language)
            found += self._unit.words.search(self._query, language, limit, scope)
        items = [match for match in nearest if match.run_id is not None]
        ranks = self._unit.words.rank(self._query, self._texts(items)) if items else []
        found += [
            replace(match, score=rank) for match, rank in zip(items, ranks, strict=True) if rank
        ]
        # Python's sort leaves those of one language in their order, where scores are the same.
        return sorted(found, key=lambda match: -match.score)[:limit]

    def highlighted(self, matches: Sequence[Match]) -> list[Match]:
        """The same matches; the best have the places of the query's words."""
        best, rest = matches[:HIGHLIGHTED], matches[HIGHLIGHTED:]
        if not best:
            return []
        # Marks that no text has by chance.
        begin, end = (secrets.token_hex(8) for _ in range(2))
        marked = self._unit.words.marked(self._query, self._texts(best), begin, end)
        return [
            *(
                replace(match, highlights=spans(text, begin, end))
                for match, text in zip(best, marked, strict=True)
            ),
            *rest,
        ]

    def _texts(self, matches: Sequence[Match]) -> list[tuple[str, str]]:
        return [(self._languages.get(one.collection_id, "simple"), one.text) for one in matches]


def spans(marked: str, begin: str, end: str) -> Spans:
    """Where the marks are in a text without them."""
    found: list[tuple[int, int]] = []
    first, *parts = marked.split(begin)
    at = len(first)
    for part in parts:
        inside, _, after = part.partition(end)
        found.append((at, at + len(inside)))
        at += len(inside) + len(after)
    return tuple(found)


def _check_query(query: str) -> None:
    if not check_storable(query, "The query").strip():
        raise InvalidInput("The query is empty.")
    if len(query) > MAX_QUERY_CHARACTERS:
        raise InvalidInput(
            f"The query has {len(query):,} characters; at most {MAX_QUERY_CHARACTERS:,} are "
            "accepted."
        )


def _scope(unit: UnitOfWork, asked: _Asked) -> SearchScope:
    """Where to search. Raises `NotFound` for what is another owner's, or not there."""
    source, where = asked.source, dict(asked.where or {})
    if asked.run_id is not None:
        run = unit.runs.get(read_id(asked.run_id, "run"))
        if run is None or (asked.owner is not None and run.user_id != asked.owner):
            raise NotFound(f"There is no run {asked.run_id}.")
        return SearchScope((run.collection_id,), run.id, source, where)
    found: dict[UUID, None] = {}
    for one in asked.collections or (DEFAULT_NAME,):
        if one == ALL:
            found |= dict.fromkeys(unit.collections.ids_of(asked.user_id))
            continue
        # A name is that of one's own, also for who reaches all.
        owner = asked.user_id if read_name(one) else asked.owner
        collection = find_collection(unit, one, owner)
        if collection.deleted_at is not None:
            raise NotFound(f"The collection {one!a:.200} is being deleted.")
        found[collection.id] = None
    return SearchScope(tuple(found), None, source, where)
