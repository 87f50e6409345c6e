"""Responses as their users have them: asked for, looked at, cancelled, deleted, gone on with."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from promptstack.repositories.jobs.records import NewResponse
from promptstack.repositories.models import Job, JobState
from promptstack.repositories.response_models import StoredResponse
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.services.errors import IdempotencyConflict, InvalidInput, NotFound, WrongState
from promptstack.services.jobs.new_job import written_json
from promptstack.services.jobs.service import JobService
from promptstack.services.llm.answers import Capability
from promptstack.services.llm.factory import LLMServiceFactory
from promptstack.services.llm.model_names import ModelNames
from promptstack.services.openai.responses import response_id
from promptstack.services.responses.items import (
    answered_turns,
    input_items,
    output_item,
    referred,
    response_of,
)
from promptstack.services.responses.requests import generation_of, renamed
from promptstack.services.responses.views import ResponseView
from promptstack.services.text import check_storable_json

STORED = frozenset(
    {"background", "instructions", "max_output_tokens", "max_tool_calls", "metadata"}
    | {"parallel_tool_calls", "previous_response_id", "prompt_cache_key", "reasoning"}
    | {"safety_identifier", "service_tier", "store", "stream", "temperature", "text"}
    | {"tool_choice", "tools", "top_p", "truncation", "user"}
)
"""What a response says of the request that asked for it."""
MAX_REFERENCES = 1_000
"""Items of earlier responses that one input refers to."""


class ResponseService:
    """Responses of one user: others' are not there."""

    def __init__(
        self, ledger: Ledger, jobs: JobService, names: ModelNames, factory: LLMServiceFactory
    ) -> None:
        self._ledger = ledger
        self._jobs = jobs
        self._names = names
        self._factory = factory

    def create(
        self,
        asked: Mapping[str, Any],
        given: str | Sequence[Any],
        previous: UUID | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Any,
    ) -> ResponseView:
        """Accept a response: the body `asked` without its input, its input, and what it goes on.

        `options` are those of its job: its owner, and how it runs. It is kept for later questions
        where it runs in the background, or `store` is not false. Raises `InvalidInput` and
        `IdempotencyConflict`.
        """
        check_storable_json(dict(asked), "The request")
        model = self._names.resolve(
            asked["model"],
            Capability.GENERATION,
            key_limits=options.get("key_limits"),
            same_for=idempotency_key,
        )
        service = self._factory.offered(model.provider)
        own = self._items(given, options["user_id"])
        before = self._conversation(previous, options["user_id"]) if previous else []
        messages, how = generation_of(asked, own, model.provider, service)
        first = 1 if asked.get("instructions") is not None else 0
        how.pop("model", None)
        is_kept = bool(asked.get("background")) or asked.get("store") is not False
        said = {name: value for name, value in asked.items() if name in STORED}
        response = NewResponse(written_json(said), first + len(before), is_kept)
        try:
            job = self._jobs.enqueue_response(
                response,
                **how,
                messages=[*messages[:first], *before, *messages[first:]],
                provider=model.provider,
                model=model.model,
                fallbacks=self._factory.fallbacks_for(model.fallbacks, how["options"]),
                stream=bool(asked.get("stream")),
                idempotency_key=idempotency_key,
                **options,
            )
        except InvalidInput as error:
            raise renamed(error) from error
        if idempotency_key is not None:
            self._check_same(job.id, said)
        return ResponseView(job, said, is_kept)

    def get(self, one: UUID, owner: UUID | None) -> ResponseView:
        """Return a response. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            return ResponseView.of(*_found(unit, one, owner))

    def cancel(self, one: UUID, owner: UUID | None) -> ResponseView:
        """End a response that goes on; one that has ended stays as it is. Raises `NotFound`."""
        view = self.get(one, owner)
        if view.status.is_final:
            return view
        try:
            return view.with_job(self._jobs.cancel(one, owner=owner))
        except WrongState:
            return self.get(one, owner)

    def delete(self, one: UUID, owner: UUID | None) -> None:
        """Delete a response with its job; it ends first, if it goes on. Raises `NotFound`."""
        if not self.get(one, owner).status.is_final:
            with suppress(WrongState):
                self._jobs.cancel(one, owner=owner)
        with self._ledger.transaction() as unit:
            unit.responses.delete(one)

    def input_items(self, one: UUID, owner: UUID | None) -> list[dict[str, Any]]:
        """Return its own input, in order. Raises `NotFound`."""
        with self._ledger.transaction() as unit:
            row, job = _found(unit, one, owner, with_input=True)
            return input_items(one, job.request["messages"][row.turns_before :])

    def _check_same(self, one: UUID, said: Mapping[str, Any]) -> None:
        """Raise `IdempotencyConflict` where the key's job was asked for in other words."""
        with self._ledger.transaction() as unit:
            if unit.responses.asked_with(one) != json.loads(written_json(said)):
                raise IdempotencyConflict(
                    "This Idempotency-Key was sent before with another request. Send the same "
                    "request with it, or another key."
                )

    def _conversation(self, previous: UUID, owner: UUID | None) -> list[dict[str, Any]]:
        """The turns that a response goes on with: the input of the one before and its answer."""
        name = response_id(previous)
        with self._ledger.transaction() as unit:
            found = unit.responses.find(previous, owner, with_input=True)
            if found is None:
                raise InvalidInput(
                    f"There is no response {name} of yours. It was deleted, is older than this "
                    "server keeps, or was asked for with `store` false.",
                    pointer="/previous_response_id",
                )
            row, job = found
            if job.state != JobState.SUCCEEDED or job.result is None:
                raise InvalidInput(
                    f"The response {name} has no answer to go on with: its job is {job.state}.",
                    pointer="/previous_response_id",
                )
            turns: list[dict[str, Any]] = list(job.request["messages"])
        # Instructions hold for one response only.
        first = 1 if row.asked.get("instructions") is not None else 0
        return [*turns[first:], *answered_turns(job.result)]

    def _items(self, given: str | Sequence[Any], owner: UUID | None) -> list[Any]:
        """An input as items; references to earlier output become what they refer to."""
        if isinstance(given, str):
            return [{"role": "user", "content": given}]
        ids = [name for item in given if (name := referred(item)) is not None]
        if not given:
            raise InvalidInput("The input is empty.", pointer="/input")
        if not ids:
            return list(given)
        if len(ids) > MAX_REFERENCES:
            raise InvalidInput(
                f"The input refers to more than {MAX_REFERENCES:,} items; send the items instead.",
                pointer="/input",
            )
        wanted = {one for name in ids if (one := response_of(name)) is not None}
        with self._ledger.transaction() as unit:
            jobs = unit.responses.jobs_of(wanted, owner)
        return [_resolved(number, item, jobs) for number, item in enumerate(given)]


def _resolved(number: int, item: Any, jobs: Mapping[UUID, Job]) -> Any:
    name = referred(item)
    if name is None:
        return item
    job = jobs.get(response_of(name) or UUID(int=0))
    found = output_item(name, job.id, job.result) if job is not None and job.result else None
    if found is None:
        raise InvalidInput(
            f"There is no item {name[:80]!a} in your responses; send the item itself.",
            pointer=f"/input/{number}/id",
        )
    return found


def _found(
    unit: UnitOfWork, one: UUID, owner: UUID | None, *, with_input: bool = False
) -> tuple[StoredResponse, Job]:
    found = unit.responses.find(one, owner, with_input=with_input)
    if found is None:
        raise NotFound(f"There is no response {response_id(one)}.")
    return found
