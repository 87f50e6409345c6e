"""Taking a run's inputs in: checked, hashed, and into the ledger block by block."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from threading import Event, Thread
from uuid import UUID

import orjson

from repositories.errors import TransientLedgerError
from repositories.items import Ended, NewItem
from repositories.session import Ledger, UnitOfWork
from services.sources.reading import BadInput, Fault, Input

logger = logging.getLogger(__name__)

BLOCK = 10_000
"""Inputs in one transaction: some megabytes."""
FAULTS_TOLD = 20
SHOWN_SECONDS = 60.0
"""Far less than the silence after which a reader counts as gone."""

Hasher = Callable[[Input], bytes]
"""Names what is asked for: the same name, the same answer."""


@dataclass
class Intake:
    """What has come in so far."""

    items: int = 0
    bad: int = 0
    last_position: int = 0
    faults: list[BadInput] = field(default_factory=list)
    """The first of them."""


def embedding_hasher() -> Hasher:
    """Of a text alone: its vector serves everybody, documents too."""
    return lambda one: hashlib.sha256((one.text or "").encode()).digest()


def generation_hasher(asked: object) -> Hasher:
    """Of a prompt with all that is `asked` beside it, as JSON."""
    base = hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS))

    def hash_of(one: Input) -> bytes:
        content = base.copy()
        if one.messages is None:
            content.update(b"\x00" + (one.text or "").encode())
        else:
            content.update(b"\x01" + orjson.dumps(one.messages, option=orjson.OPT_SORT_KEYS))
        return content.digest()

    return hash_of


def texts_only(inputs: Iterator[Input | BadInput]) -> Iterator[Input | BadInput]:
    """The same, but what has messages, which can't be embedded, is bad."""
    for one in inputs:
        if isinstance(one, Input) and one.text is None:
            reason = "It has messages, which can't be embedded; give it a text."
            yield BadInput(one.position, one.custom_id, Fault.WRONG_TYPE, reason)
        else:
            yield one


def take_in(
    ledger: Ledger,
    run_id: UUID,
    inputs: Iterator[Input | BadInput],
    hash_of: Hasher,
    told: Callable[[Intake], None],
) -> Intake:
    """Store all inputs of a run; `told` hears of each block. Raises what reading them raises.

    One block is stored while the next one is read, and no more wait: memory does not grow.
    """
    intake = Intake()
    stored: Future[None] | None = None
    with ThreadPoolExecutor(1, "intake") as writer:
        while block := list(islice(inputs, BLOCK)):
            items = [_item(one, hash_of) for one in block]
            bad = [one for one in block if isinstance(one, BadInput)]
            if stored is not None:
                stored.result()
                told(intake)
            intake.items += len(block)
            intake.bad += len(bad)
            intake.last_position = max(intake.last_position, *(one.position for one in block))
            intake.faults += bad[: FAULTS_TOLD - len(intake.faults)]
            counts = (intake.items, intake.last_position)
            stored = writer.submit(_store, ledger, run_id, items, bad, counts)
        if stored is not None:
            stored.result()
    told(intake)
    return intake


@contextmanager
def shown_as_read(ledger: Ledger, run_id: UUID) -> Iterator[None]:
    """Show that a run's source is still read, while the context is open.

    By a thread of its own, as who waits for the next line of a pipe can do nothing else.
    """
    over = Event()

    def show() -> None:
        while not over.wait(SHOWN_SECONDS):
            try:
                with ledger.transaction() as unit:
                    unit.runs.show_reading(run_id)
            except TransientLedgerError as error:
                logger.warning("that a run is still read is said later: %s", error)

    shower = Thread(target=show, name="intake-shown", daemon=True)
    shower.start()
    try:
        yield
    finally:
        over.set()
        shower.join()


def first_faults(unit: UnitOfWork, run_id: UUID) -> list[BadInput]:
    """What is wrong with the first inputs of a run that is not started, as the ledger has it."""
    return [
        BadInput(row.position, row.custom_id, row.code, row.error)
        for row in unit.results.failures(run_id, 0, FAULTS_TOLD)
    ]


def _store(
    ledger: Ledger,
    run_id: UUID,
    items: list[NewItem],
    bad: list[BadInput],
    counts: tuple[int, int],
) -> None:
    def write(unit: UnitOfWork) -> None:
        unit.items.add(run_id, items)
        unit.items.end(
            run_id, [Ended(one.position, error_code=one.code, error=one.reason) for one in bad]
        )
        unit.runs.touch(run_id, *counts)

    with ledger.transaction() as unit:
        write(unit)


def _item(one: Input | BadInput, hash_of: Hasher) -> NewItem:
    if isinstance(one, BadInput):
        custom_id = one.custom_id if one.custom_id is not None else str(one.position)
        return NewItem(one.position, custom_id, None, None, None, b"{}")
    return NewItem(
        one.position,
        one.custom_id,
        hash_of(one),
        None if one.text is None else one.text.encode(),
        None if one.messages is None else orjson.dumps(one.messages),
        orjson.dumps(one.metadata) if one.metadata else b"{}",
    )
