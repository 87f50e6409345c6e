"""Taking a source in: what others do to its run meanwhile, and what whoever hands it in decides."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from promptstack.repositories.models import new_id
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import NotFound, WrongState
from promptstack.services.runs.intake.ingest import MAX_BLOCK
from promptstack.services.sources.reading import BadRecord, Fault
from promptstack.tasks.worker_services import WorkerServices
from tests.runs import in_ledger, prompts


def test_a_run_that_was_deleted_meanwhile_takes_no_more_items(stack: WorkerServices) -> None:
    """They would stay for ever: nobody deletes items of a run that is not there."""
    run_id = new_id()

    def source() -> Iterator[dict[str, str]]:
        yield from prompts(MAX_BLOCK + 1)
        stack.runs.discard(run_id)
        yield from prompts(MAX_BLOCK)

    with pytest.raises(WrongState, match="ended or deleted while"):
        stack.runs.prepare_generation(source(), provider="demo", run_id=run_id)
    assert in_ledger(stack, "SELECT count(*) FROM items") == 0
    with pytest.raises(NotFound):
        stack.runs.get(run_id)


def test_what_is_recorded_with_a_start_stands_or_falls_with_it(stack: WorkerServices) -> None:
    found = stack.runs.prepare_generation(prompts(2), provider="demo")

    def refuse(unit: UnitOfWork) -> None:
        raise WrongState("Somebody else has it.")

    with pytest.raises(WrongState, match="Somebody else"):
        stack.runs.start(found.run_id, record=refuse)
    assert stack.runs.get(found.run_id).state == "preparing"


def test_each_record_can_be_checked_before_it_is_read(stack: WorkerServices) -> None:
    def check(record: Mapping[str, Any]) -> None:
        if record["custom_id"] == "id-1":
            raise BadRecord(Fault.INVALID_URL, "Not here.", pointer="/url")

    found = stack.runs.prepare_generation(prompts(3), provider="demo", check_request=check)
    [fault] = found.faults
    assert (found.bad, fault.position, fault.code, fault.pointer) == (1, 2, "INVALID_URL", "/url")
