"""Lists that travel to PostgreSQL as one literal arrive as they left."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    BigInteger,
    Boolean,
    Double,
    LargeBinary,
    Numeric,
    Text,
    Uuid,
    bindparam,
    func,
    select,
)
from sqlalchemy.types import TypeEngine

from promptstack.repositories.wire_values import ArrayLiteral
from promptstack.tasks.composition import PromptStack

STORABLE = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
KINDS: list[tuple[TypeEngine[Any], st.SearchStrategy[Any]]] = [
    (BigInteger(), st.integers(-(2**63), 2**63 - 1)),
    (Boolean(), st.booleans()),
    (Double(), st.floats(allow_nan=False)),
    (LargeBinary(), st.binary()),
    (Numeric(30, 10), st.decimals(-(10**12), 10**12, places=10)),
    (Text(), STORABLE | st.sampled_from(["", "NULL", "null", '"', "\\", "{a,b}", " x ", "'"])),
    (Uuid(), st.uuids()),
]


@pytest.mark.parametrize(("kind", "values"), KINDS, ids=lambda it: type(it).__name__)
def test_a_list_arrives_as_it_left(
    stack: PromptStack, kind: TypeEngine[Any], values: st.SearchStrategy[Any]
) -> None:
    sent = func.unnest(bindparam("sent", type_=ArrayLiteral(kind)), type_=kind)
    query = select(sent.column_valued("one"))

    @settings(
        max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.lists(values | st.none(), max_size=20))
    def check(elements: list[Any]) -> None:
        with stack.ledger.transaction() as unit:
            found = list(unit.session.scalars(query, {"sent": elements}))
        assert list(map(_plain, found)) == elements

    check()


def test_no_list_is_null(stack: PromptStack) -> None:
    query = select(func.cardinality(bindparam("sent", type_=ArrayLiteral(BigInteger()))))
    with stack.ledger.transaction() as unit:
        assert unit.session.scalar(query, {"sent": None}) is None
        assert unit.session.scalar(query, {"sent": []}) == 0


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, memoryview) else value
