"""Search for passages by their words: PostgreSQL's full text, in the language of a collection."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from promptstack.repositories.content.passages import (
    CHUNK_COLUMNS,
    Match,
    SearchScope,
    match_rows,
)
from promptstack.repositories.content_models import Collection
from promptstack.repositories.wire_values import BatchStatement

RANKED = 20_000
"""Chunks that have a word of the query, of which the best are chosen."""
READ_CHARACTERS = 50_000
"""Of a text of a run, whose length is anybody's. PostgreSQL refuses over 1 MB of words."""


class WordRepository:
    """Finds words."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def languages(self, collections: Sequence[UUID]) -> dict[UUID, str]:
        """The languages of collections."""
        rows = self._session.execute(
            select(Collection.id, Collection.language).where(Collection.id.in_(collections))
        )
        return {row.id: row.language for row in rows}

    def search(self, query: str, language: str, limit: int, scope: SearchScope) -> list[Match]:
        """Return the chunks with words of the query, best first; the scope has this language."""
        given = {**scope.values, "query": query, "language": language, "limit": limit}
        rows = self._session.execute(_search(scope), {**given, "ranked": RANKED}).all()
        return match_rows(rows)

    def rank(self, query: str, texts: Sequence[tuple[str, str]]) -> list[float]:
        """How well each text, given with its language, has the words of the query.

        0 is without any, and over 1 is with all of them.
        """
        return [row.rank for row in _RANK.run(self._session, _rows(texts), query=query)]

    def marked(
        self, query: str, texts: Sequence[tuple[str, str]], begin: str, end: str
    ) -> list[str]:
        """The begin of each text, given with its language, with marks around the query's words."""
        options = f"HighlightAll=true, StartSel={begin}, StopSel={end}"
        found = _MARK.run(self._session, _rows(texts), query=query, options=options)
        return [row.text for row in found]


def _rows(texts: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"place": number, "language": language, "text": said[:READ_CHARACTERS]}
        for number, (language, said) in enumerate(texts)
    ]


def _all_words(language: str) -> str:
    return f"plainto_tsquery(CAST({language} AS regconfig), :query)"


def _any_word(language: str) -> str:
    """The words of the query, of which one is enough."""
    return f"CAST(replace(CAST({_all_words(language)} AS text), ' & ', ' | ') AS tsquery)"


def _rank(words: str, all_words: str, any_word: str) -> str:
    return f"CAST({words} @@ {all_words} AS integer) + ts_rank_cd({words}, {any_word}, 1)"


def _search(scope: SearchScope) -> Any:
    where: Mapping[str, Any] = {"where": bindparam("where", type_=JSONB)} if scope.where else {}
    return text(
        f"""
        WITH asked AS MATERIALIZED (
            SELECT {_any_word(":language")} AS one_word,
                {_all_words(":language")} AS all_words
        ), matching AS MATERIALIZED (
            SELECT {CHUNK_COLUMNS}, c.words, c.id
            {scope.chunks} AND c.words @@ (SELECT one_word FROM asked) LIMIT :ranked
        )
        SELECT document_id, run_id, collection_id, source, position, start, text, attributes,
            {_rank("words", "all_words", "one_word")} AS score
        FROM matching, asked ORDER BY score DESC, id LIMIT :limit
        """  # noqa: S608 - names of our own
    ).bindparams(*where.values())


_TEXTS = "place integer, language text, text text"
_RANK = BatchStatement(
    _TEXTS,
    f"""
    SELECT {_rank("words", _all_words("language"), _any_word("language"))} AS rank
    FROM given, LATERAL (SELECT to_tsvector(CAST(language AS regconfig), text) AS words) AS its
    ORDER BY place""",  # noqa: S608 - names of our own
)
_MARK = BatchStatement(
    _TEXTS,
    f"""
    SELECT ts_headline(CAST(language AS regconfig), text, {_any_word("language")}, :options)
        AS text
    FROM given ORDER BY place""",  # noqa: S608 - names of our own
)
