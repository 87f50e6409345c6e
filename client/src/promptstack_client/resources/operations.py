"""Operations: retry or cancel all jobs that a filter matches."""

from typing import Literal, Unpack

from promptstack_client.calls import Asked
from promptstack_client.methods import AnySender, Composed, Resource, lists, sends
from promptstack_client.models.base import Id, id_of
from promptstack_client.models.operations import Operation
from promptstack_client.options import ListOptions, OwnedJobFilter
from promptstack_client.sending import Flow
from promptstack_client.waiting import until_ended


class Operations(Resource[AnySender]):
    """What is done to many jobs at once."""

    @sends("POST", "/operations", Operation, keyed=True)
    def create(
        self,
        action: Literal["retry", "cancel"],
        filter: OwnedJobFilter | None = None,  # noqa: A002 - as the API calls it
        *,
        idempotency_key: str | None = None,
    ) -> Asked:
        """Retry or cancel all jobs that a filter matches: of `jobs.list`.

        A retry without a state is of failed jobs; a cancel, of queued and running ones.
        """
        return Asked(
            body={"action": action, "filter": filter or {}}, idempotency_key=idempotency_key
        )

    @sends("GET", "/operations/{operation_id}", Operation)
    def get(self, operation: Operation | Id) -> Asked:
        """Show how far an operation has come, and what it could not do."""
        return Asked({"operation_id": id_of(operation)})

    @Composed
    def wait(self, operation: Operation | Id, *, timeout: float | None = None) -> Flow[Operation]:
        """Wait for the end of an operation. Raises `WaitTimedOut`; it goes on."""
        call = Operations.get.call(self, operation)
        return until_ended(call, timeout, f"The operation {id_of(operation)}", is_held=False)

    @lists("/operations", Operation, "operations")
    def list(self, **options: Unpack[ListOptions]) -> Asked:
        """List operations, the newest first."""
        return Asked(query=options)
