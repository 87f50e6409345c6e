"""Pages of all items of a run, each with what became of it so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import JsonValue
from sqlalchemy.orm import Session

from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.runs.page_columns import ANSWER, JSON, Columns, PageOf, asked_vectors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Of each item its outcome: 0 if it succeeded, else what it failed of, null if it is open. What is
# found by its content is a result of this run only if it has succeeded here.
_ITEMS = """
SELECT *, {found}
FROM (
  SELECT position, custom_id, metadata::text AS metadata, {asked} AS asked, content_hash,
         parameters::text AS parameters, octet_length(text) AS text_bytes,
         (SELECT CASE WHEN error_code IS NULL THEN '0'
                      ELSE jsonb_build_array(error_code, coalesce(error, ''), detail)::text END
          FROM outcomes WHERE run_id = items.run_id AND position = items.position) AS outcome
  FROM items
  WHERE run_id = %(run_id)s AND position > %(after)s AND position <= %(until)s
  ORDER BY position LIMIT %(limit)s
) AS items
"""
_IF_SUCCEEDED = "CASE WHEN outcome = '0' THEN ({found}) END"


class LineError(NamedTuple):
    """Why an item failed."""

    code: str
    message: str
    detail: str | None
    """The provider's words, or an answer that was not accepted."""


class RunLine(NamedTuple):
    """An item of a run with what became of it so far, if anything has."""

    position: int
    custom_id: str | None
    """None where it could not be read."""
    metadata: dict[str, JsonValue]
    parameters: Mapping[str, Any]
    """Its own, or else the run's."""
    state: Literal["open", "succeeded", "failed"]
    answer: dict[str, JsonValue] | None
    vector: "npt.NDArray[np.float32] | None"
    """One that has succeeded has an answer or a vector, unless that was deleted."""
    error: LineError | None
    text_bytes: int
    """Of its text, in UTF-8; 0 where it has messages."""


@dataclass(frozen=True, slots=True)
class LinePage:
    """Lines in the order of their items."""

    rows: list[RunLine]
    more_after: int | None
    """As of a `ResultPage`."""
    bytes: int


def read_lines(
    session: Session,
    wanted: PageOf,
    parameters: Mapping[str, Any],
    answers_of: tuple[str, str] | None,
    models: Sequence[EmbeddingModel],
) -> LinePage:
    """Return all items after a position, with what became of each.

    `parameters` are the run's. Answers are of a provider and model, or else vectors of one of the
    `models`.
    """
    names = ("outcome", "parameters", "text_bytes::text")
    states = [JSON.format(name=name) for name in names]
    if answers_of is not None:
        sources, found = [ANSWER], [JSON.format(name="found_0")]
        values: dict[str, Any] = dict(zip(("provider", "model"), answers_of, strict=True))
    else:
        sources, found, values = asked_vectors(models, with_vector=True)
    page = Columns(
        session,
        wanted,
        sources,
        [*states, *found],
        values,
        of_items=_ITEMS,
        found_as=_IF_SUCCEEDED,
        sized=("outcome", "parameters"),
    )
    if not page.count:
        return LinePage([], None, 0)
    if answers_of is not None:
        vectors, answers = [None] * page.count, page.json(len(states))
    else:
        (vectors, _), answers = page.vectors(len(states), models), [None] * page.count
    rows = []
    own_columns = (page.json(number) for number in range(len(names)))
    columns = zip(*page.items(), *own_columns, answers, vectors, strict=True)
    for position, custom_id, metadata, outcome, own, text_bytes, answer, vector in columns:
        error = LineError(*outcome) if outcome else None
        state: Any = "failed" if error else "open" if outcome is None else "succeeded"
        asked = parameters if own is None else own
        name, size = custom_id or None, text_bytes or 0
        rows.append(RunLine(position, name, metadata, asked, state, answer, vector, error, size))
    return LinePage(rows, page.more_after(rows[-1].position), page.bytes)
