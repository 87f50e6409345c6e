"""Pages of results: the items of a run that have succeeded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue
from sqlalchemy.orm import Session

from promptstack.repositories.content_models import EmbeddingModel
from promptstack.repositories.runs.page_columns import ANSWER, JSON, Columns, PageOf, asked_vectors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Produced:
    """A result: a vector or an answer, and the item it belongs to."""

    position: int
    custom_id: str
    metadata: dict[str, JsonValue]
    text: str | None
    """What was sent. Written only when asked for."""
    vector: "npt.NDArray[np.float32] | None"
    answer: dict[str, JsonValue] | None
    """`text`, `model`, `finish_reason`, `input_tokens`, `output_tokens` and whatever else; `json`
    where the answer was to be JSON."""


@dataclass(frozen=True, slots=True)
class ResultPage:
    """Results in the order of their items."""

    rows: list[Produced]
    """Of an item that is there without its result, as when that was deleted, there is none."""
    more_after: int | None
    """The position after which there may be more; None at the end."""
    bytes: int
    """Of what was read, about."""


def read_answers(session: Session, wanted: PageOf, provider: str, model: str) -> ResultPage:
    """Return the next answers after a position."""
    values = {"provider": provider, "model": model}
    page = Columns(session, wanted, [ANSWER], [JSON.format(name="found_0")], values)
    answers = page.json(0) if page.count else []
    return _page(page, [None] * page.count, answers, [one is not None for one in answers])


def read_vectors(
    session: Session, wanted: PageOf, models: Sequence[EmbeddingModel], *, with_vector: bool
) -> ResultPage:
    """Return the next vectors after a position, each of the first model that has one.

    Without `with_vector` the same items come without them.
    """
    sources, columns, values = asked_vectors(models, with_vector=with_vector)
    page = Columns(session, wanted, sources, columns, values)
    vectors, is_there = page.vectors(0, models, with_vector=with_vector)
    return _page(page, vectors, [None] * page.count, is_there)


def _page(
    page: Columns, vectors: Sequence[Any], answers: Sequence[Any], has_one: Sequence[object]
) -> ResultPage:
    """Return the page with these results; `has_one` says which of its items have any."""
    if not page.count:
        return ResultPage([], None, 0)
    positions, ids, metadata = page.items()
    columns = zip(positions, ids, metadata, page.texts(), vectors, answers, strict=True)
    rows = [Produced(*row) for row, is_there in zip(columns, has_one, strict=True) if is_there]
    return ResultPage(rows, page.more_after(positions[-1]), page.bytes)
