"""A run's inputs are checked, hashed and stored in the ledger, block by block."""

import hashlib
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from uuid import UUID

from promptstack.repositories.errors import TransientLedgerError
from promptstack.repositories.runs.new_items import NewItem
from promptstack.repositories.runs.outcomes import Ended
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.documents.vectors import vector_key
from promptstack.services.errors import InvalidInput, WrongState
from promptstack.services.sources.reading import BadInput, Fault, Input
from promptstack.services.validation.json_text import dump_json

logger = logging.getLogger(__name__)

MAX_BLOCK = 10_000
"""Inputs in one transaction."""
MAX_FAULTS = 20
SHOWN_SECONDS = 60.0
"""Far less than the time after which a run counts as abandoned."""


class TooManyInputs(InvalidInput):
    """The source has more inputs than one run may have."""

    code = "TOO_MANY_INPUTS"


@dataclass
class Block:
    """Inputs that are stored together."""

    items: list[NewItem] = field(default_factory=list)
    bad: list[BadInput] = field(default_factory=list)
    """Those of them that can't be asked for."""
    size: int = 0
    """In bytes."""

    def add(self, item: NewItem, one: Input | BadInput) -> None:
        """Add an input."""
        self.items.append(item)
        self.size += item.size + len(item.attributes)
        if isinstance(one, BadInput):
            self.bad.append(one)


Hasher = Callable[[Input], bytes]
"""Returns the hash of what is asked for. The same hash means the same answer."""
Check = Callable[[Input], None]
"""Raises `InvalidInput` for what a provider can't be asked."""


@dataclass
class Intake:
    """What has been read so far."""

    items: int = 0
    bad: int = 0
    bytes: int = 0
    """With their metadata."""
    last_position: int = 0
    faults: list[BadInput] = field(default_factory=list)
    """The first bad inputs."""


def embedding_hasher(user_id: UUID | None, dimensions: int | None = None) -> Hasher:
    """Hash the text and an asked size: its vector serves all runs and documents of this user."""

    def hash_of(one: Input) -> bytes:
        content_hash = hashlib.sha256((one.text or "").encode()).digest()
        return vector_key(content_hash, user_id, dimensions)

    return hash_of


def generation_hasher(shared: object) -> Hasher:
    """Hash the prompt together with what all items ask alike."""
    base = hashlib.sha256(dump_json(shared, sort_keys=True))

    def hash_of(one: Input) -> bytes:
        content = base.copy()
        if one.messages is None:
            content.update(b"\x00" + (one.text or "").encode())
        else:
            content.update(b"\x01" + dump_json(one.messages, sort_keys=True))
        return content.digest()

    return hash_of


def text_only(one: Input) -> None:
    """Raise `InvalidInput` for messages, which can't be embedded."""
    if one.text is None:
        raise InvalidInput("It has messages, which can't be embedded; give it a text.")


def only_askable(inputs: Iterator[Input | BadInput], check: Check) -> Iterator[Input | BadInput]:
    """Turn inputs that the provider can't be asked for into bad ones."""
    for one in inputs:
        try:
            if isinstance(one, Input):
                check(one)
        except InvalidInput as error:
            yield BadInput(one.position, one.custom_id, Fault.WRONG_TYPE, str(error))
        else:
            yield one


def take_in(
    ledger: Ledger,
    run_id: UUID,
    inputs: Iterator[Input | BadInput],
    hash_of: Hasher,
    on_progress: Callable[[Intake], None],
    *,
    block_bytes: int,
    total_bytes: int | None = None,
    total_items: int | None = None,
) -> Intake:
    """Store all inputs of a run, and call `on_progress` after each block.

    One block is stored while the next one is read. No others wait, so memory does not grow.
    `total_bytes` and `total_items` bound the whole run; None takes as much as the source has.
    Raises what reading the inputs raises.
    """
    intake = Intake()
    stored: Future[None] | None = None
    with ThreadPoolExecutor(1, "intake") as writer:
        for block in _blocks(inputs, hash_of, block_bytes):
            intake.bytes += block.size
            if total_bytes is not None and intake.bytes > total_bytes:
                raise InvalidInput(
                    f"The run's inputs come to more than {total_bytes:,} bytes, a template "
                    "filled in (MAX_RENDERED_BYTES, or of a file MAX_UNPACKED_BYTES); hand them "
                    "in as several runs."
                )
            if total_items is not None and intake.items + len(block.items) > total_items:
                raise TooManyInputs(
                    f"The run has more than {total_items:,} inputs (MAX_RUN_ITEMS); hand them in "
                    "as several runs."
                )
            if stored is not None:
                stored.result()
                on_progress(intake)
            intake.items += len(block.items)
            intake.bad += len(block.bad)
            intake.last_position = max(intake.last_position, *(one.position for one in block.items))
            intake.faults += block.bad[: MAX_FAULTS - len(intake.faults)]
            counts = (intake.items, intake.last_position)
            stored = writer.submit(_store, ledger, run_id, block, counts)
        if stored is not None:
            stored.result()
    on_progress(intake)
    return intake


def _blocks(inputs: Iterator[Input | BadInput], hash_of: Hasher, max_bytes: int) -> Iterator[Block]:
    """Group inputs: many short ones, or few long ones."""
    block = Block()
    for one in inputs:
        block.add(_item(one, hash_of), one)
        if len(block.items) >= MAX_BLOCK or block.size >= max_bytes:
            yield block
            block = Block()
    if block.items:
        yield block


@contextmanager
def shown_as_read(ledger: Ledger, run_id: UUID) -> Iterator[None]:
    """Note every minute that the run's source is still read, so that it isn't abandoned.

    A thread does it: the reader itself may wait for the next line of a pipe.
    """
    over = Event()

    def show() -> None:
        while not over.wait(SHOWN_SECONDS):
            try:
                with ledger.transaction() as unit:
                    unit.runs.show_reading(run_id)
            except TransientLedgerError as error:
                logger.warning("run %s could not be noted as still read: %s", run_id, error)

    shower = Thread(target=show, name="intake-shown", daemon=True)
    shower.start()
    try:
        yield
    finally:
        over.set()
        shower.join()


def first_faults(unit: UnitOfWork, run_id: UUID) -> list[BadInput]:
    """Return the first bad inputs of a run, as the ledger has them."""
    return [
        BadInput(row.position, row.custom_id, row.code, row.error)
        for row in unit.results.failures(run_id, 0, MAX_FAULTS)
    ]


def _store(ledger: Ledger, run_id: UUID, block: Block, counts: tuple[int, int]) -> None:
    bad = [Ended(one.position, error_code=one.code, error=one.reason) for one in block.bad]
    with ledger.transaction() as unit:
        unit.items.add(run_id, block.items)
        unit.outcomes.end(run_id, bad)
        if not unit.runs.touch(run_id, *counts):
            raise WrongState("The run was ended or deleted while its inputs were read.")


def _item(one: Input | BadInput, hash_of: Hasher) -> NewItem:
    if isinstance(one, BadInput):
        return NewItem(one.position, one.custom_id, None, None, None, b"{}")
    own = one.own
    return NewItem(
        one.position,
        one.custom_id,
        (hash_of if own is None else own.hash_of)(one),
        None if one.text is None else one.text.encode(),
        None if one.messages is None else dump_json(one.messages),
        dump_json(one.metadata) if one.metadata else b"{}",
        None if own is None else dump_json(own.parameters),
    )
