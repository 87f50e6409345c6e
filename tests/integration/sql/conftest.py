"""A role of the database that may enqueue, and its own connection."""

from collections.abc import Iterator
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import text

from promptstack.services.access.users import UserView
from promptstack.services.audit.actor import Actor
from promptstack.tasks.worker_services import WorkerServices
from tests.sql_roles import connect


@pytest.fixture
def ada(stack: WorkerServices) -> UserView:
    return stack.users.create("ada@example.org")


@pytest.fixture
def role(stack: WorkerServices, ada: UserView) -> Iterator[str]:
    """A role that may enqueue for Ada. Roles belong to the server, and so to all tests."""
    name = f"billing-{uuid4().hex[:12]}"
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(f'CREATE ROLE "{name}" LOGIN'))
    stack.sql_roles.grant(name, ada.id, by=Actor.command_line())
    yield name
    with stack.ledger.transaction() as unit:
        unit.session.execute(text(f'DROP OWNED BY "{name}"; DROP ROLE "{name}"'))


@pytest.fixture
def connection(stack: WorkerServices, role: str) -> Iterator[Any]:
    with closing(connect(stack, role)) as opened:
        yield opened
