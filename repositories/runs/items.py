"""Items of runs: handed in by COPY, taken by range. They never change."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple
from typing import cast as cast_type
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Integer,
    Table,
    Text,
    bindparam,
    case,
    cast,
    delete,
    exists,
    false,
    func,
    or_,
    select,
    true,
)
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from promptstack.repositories.base import change_rows
from promptstack.repositories.content.unused import NOTE
from promptstack.repositories.content.vector_tables import TABLES
from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.run_models import Answer, Item, ItemTries, Outcome
from promptstack.repositories.runs.new_items import COLUMNS, NewItem, row_of
from promptstack.repositories.wire_values import ArrayLiteral, copy_binary


class OpenItem(NamedTuple):
    """An item that has not ended."""

    position: int
    content_hash: bytes
    text: str | None
    messages: list[Any] | None
    tries: int
    """How often it has failed by its own fault."""
    parameters: dict[str, Any] | None = None
    """Of its own, in place of the run's."""


class Unpaid(NamedTuple):
    """Different contents that must be paid for."""

    contents: int
    bytes: int
    """In UTF-8."""
    as_run: int
    """Those without parameters of their own."""
    output_tokens: int
    """Of all answers, if each is as long as it may be."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive open items of a run."""

    first: int
    last: int
    items: int


class ItemRepository:
    """The items of runs."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, run_id: UUID, items: Iterable[NewItem]) -> None:
        """Add items by COPY BINARY."""
        rows = b"".join(row_of(run_id.bytes, item) for item in items)
        cursor = self._session.connection().connection.cursor()
        try:
            copy_binary(cursor, f"items {COLUMNS}", [rows])
        finally:
            cursor.close()

    def next_slice(
        self,
        run_id: UUID,
        position: int,
        size: int,
        *,
        max_bytes: int | None = None,
        until: int | None = None,
    ) -> Slice | None:
        """Return the next open items from a position on, or up to `until`. None if there is none.

        They are at most `size` items and `max_bytes` bytes, and at least one item.
        """
        end = [] if until is None else [Item.position <= until]
        ahead = (
            select(Item.position, Item.size)
            .where(Item.run_id == run_id, Item.position >= position, *end, is_open_item())
            .order_by(Item.position)
            .limit(size)
            .subquery()
        )
        before = func.sum(ahead.c.size).over(order_by=ahead.c.position) - ahead.c.size
        some = select(ahead.c.position, before.label("before"), ahead.c.size).subquery()
        fits = [] if max_bytes is None else [some.c.before + some.c.size <= max_bytes]
        row = self._session.execute(
            select(func.min(some.c.position), func.max(some.c.position), func.count()).where(
                or_(some.c.before == 0, *fits) if fits else true()
            )
        ).one()
        return Slice(*row) if row[2] else None

    def open_in(self, run_id: UUID, first: int, last: int) -> list[OpenItem]:
        """Return the open items from `first` to `last`, in order."""
        rows = self._session.execute(
            _OPEN_IN, {"the_run": run_id, "the_first": first, "the_last": last}
        )
        return [OpenItem(row[0], bytes(row[1]), *row[2:]) for row in rows]

    def note_tries(self, run_id: UUID, tries: Mapping[int, int]) -> None:
        """Note how often open items have failed, by their positions."""
        if tries:
            new = {"new_position": list(tries), "new_tries": list(tries.values())}
            self._session.execute(_NOTE_TRIES, {"the_run": run_id, **new})

    def unpaid(
        self,
        run_id: UUID,
        provider: str,
        model: str,
        embedding_models: Sequence[EmbeddingModel] | None,
        *,
        longest: int,
        own_longest: int,
    ) -> Unpaid:
        """Return what must be paid for. Bytes are of the text or messages, and of an own `system`.

        An answer has up to `longest` tokens. An item's own parameters say it for its answer, or
        else it has up to `own_longest`. With `embedding_models`, vectors are paid for: they are
        those in which any may be.
        """
        system = Item.parameters["system"].astext
        sizes = [func.octet_length(Item.text), func.octet_length(cast(Item.messages, Text))]
        sizes.append(func.octet_length(system))
        size = sum((func.coalesce(one, 0) for one in sizes[1:]), func.coalesce(sizes[0], 0))
        own = func.coalesce(cast(Item.parameters["max_tokens"].astext, Integer), own_longest)
        output = case((Item.parameters.is_(None), longest), else_=own)
        distinct = (
            select(
                Item.content_hash,
                func.max(size).label("size"),
                func.max(output).label("output"),
                func.bool_and(Item.parameters.is_(None)).label("is_as_run"),
            )
            .where(Item.run_id == run_id, Item.content_hash.is_not(None), is_open_item())
            .group_by(Item.content_hash)
            .subquery()
        )
        if embedding_models is None:
            is_paid: ColumnElement[bool] = exists().where(
                Answer.provider == provider,
                Answer.model == model,
                Answer.content_hash == distinct.c.content_hash,
            )
        else:
            tables = [(one, TABLES[one.storage]) for one in embedding_models]
            is_paid = or_(
                false(),
                *(
                    exists().where(
                        vectors.c.model_id == one.id,
                        vectors.c.content_hash == distinct.c.content_hash,
                    )
                    for one, vectors in tables
                ),
            )
        row = self._session.execute(
            select(
                func.count(),
                func.coalesce(func.sum(distinct.c.size), 0),
                func.count().filter(distinct.c.is_as_run),
                func.coalesce(func.sum(distinct.c.output), 0),
            ).where(~is_paid)
        ).one()
        return Unpaid(*map(int, row))

    def asked_sizes(self, run_id: UUID, of_run: int | None) -> set[int | None]:
        """Return the sizes of vectors that items ask for; None is the model's own.

        `of_run` is the size that items without parameters of their own ask for.
        """
        own = cast(Item.parameters["dimensions"].astext, Integer)
        size = case((Item.parameters.is_(None), of_run), else_=own)
        return set(self._session.scalars(select(size).where(Item.run_id == run_id).distinct()))

    def are_bounded(self, run_id: UUID) -> bool:
        """Whether parameters of items' own, where open items have some, bound what they cost."""
        own = Item.parameters
        unbounded = exists().where(
            Item.run_id == run_id,
            own.is_not(None),
            ~own.has_key("max_tokens") | own.has_key("options"),
            is_open_item(),
        )
        return not self._session.scalar(select(unbounded))

    def delete_of(self, run_id: UUID, limit: int, *, drops_vectors: bool = False) -> int:
        """Delete up to `limit` items of a run and their outcomes. Returns how many items.

        With `drops_vectors`, it is noted which vectors may go.
        """
        tables = (Outcome, ItemTries) if drops_vectors else (Outcome, ItemTries, Item)
        for table in tables:
            some = select(table.position).where(table.run_id == run_id).limit(limit)
            these = (table.run_id == run_id, table.position.in_(some))
            deleted = change_rows(self._session, delete(table).where(*these))
        if drops_vectors:
            given = {"run": run_id, "limit": limit, "wait": timedelta(0), "collection": None}
            deleted = self._session.scalar(_DELETE_WITH_VECTORS, given) or 0
        return deleted


def is_open_item() -> ColumnElement[bool]:
    """The condition of an item without an outcome."""
    return ~exists().where(Outcome.run_id == Item.run_id, Outcome.position == Item.position)


# Built once: building a statement costs more than running it.

_DELETE_WITH_VECTORS = sql(
    f"""
    WITH gone AS (
        DELETE FROM items WHERE run_id = :run
            AND position IN (SELECT position FROM items WHERE run_id = :run LIMIT :limit)
        RETURNING content_hash
    ), noted AS ({NOTE})
    SELECT count(*) FROM gone
    """  # noqa: S608 - ours
)

_ITEMS, _OUTCOMES = cast_type("Table", Item.__table__), cast_type("Table", Outcome.__table__)
_TRIES = cast_type("Table", ItemTries.__table__)
_OPEN_IN = (
    select(
        _ITEMS.c.position,
        _ITEMS.c.content_hash,
        _ITEMS.c.text,
        _ITEMS.c.messages,
        func.coalesce(_TRIES.c.tries, 0),
        _ITEMS.c.parameters,
    )
    .outerjoin(
        _TRIES, (_TRIES.c.run_id == _ITEMS.c.run_id) & (_TRIES.c.position == _ITEMS.c.position)
    )
    .where(
        _ITEMS.c.run_id == bindparam("the_run"),
        _ITEMS.c.position.between(bindparam("the_first"), bindparam("the_last")),
        is_open_item(),
    )
    .order_by(_ITEMS.c.position)
)
_NEW_TRIES = insert(_TRIES).from_select(
    ["run_id", "position", "tries"],
    select(
        bindparam("the_run", type_=_TRIES.c.run_id.type),
        *(
            func.unnest(bindparam(f"new_{name}", type_=ArrayLiteral(_TRIES.c[name].type)))
            for name in ("position", "tries")
        ),
    ),
)
_NOTE_TRIES = _NEW_TRIES.on_conflict_do_update(
    index_elements=[_TRIES.c.run_id, _TRIES.c.position],
    set_={"tries": func.greatest(_TRIES.c.tries, _NEW_TRIES.excluded["tries"])},
)
