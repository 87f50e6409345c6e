"""What was sent to webhooks, as their users see it: the log, replays, and tests."""

from uuid import UUID

from promptstack.repositories.idempotency import KeyedRequest
from promptstack.repositories.models import new_id
from promptstack.repositories.pages import FIRST_PAGE, Page, PageQuery
from promptstack.repositories.session import Ledger
from promptstack.repositories.unit_of_work import UnitOfWork
from promptstack.repositories.webhook_models import DeliveryState, WebhookDelivery, WebhookEndpoint
from promptstack.services.errors import NotFound, WrongState
from promptstack.services.idempotency.claims import claim
from promptstack.services.validation.ids import find_id, read_id, read_owner
from promptstack.services.webhooks.events import TEST
from promptstack.services.webhooks.service import found_endpoint
from promptstack.services.webhooks.views import DeliveryView


class DeliveryLog:
    """Shows deliveries, and sends events again.

    With `owner`, an endpoint or delivery must be that user's; another one is `NotFound`.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def test(
        self,
        endpoint_id: UUID | str,
        *,
        owner: UUID | None = None,
        keyed: KeyedRequest | None = None,
    ) -> DeliveryView:
        """Send an endpoint the event `webhook.test`. Raises `NotFound`, and `WrongState`."""
        with self._ledger.transaction() as unit:
            endpoint = found_endpoint(unit, endpoint_id, owner)
            delivery_id = new_id()
            made = claim(unit, keyed, delivery_id)
            if made is not None:
                return DeliveryView.of(_delivery(unit, made, owner)[0])
            _check_enabled(endpoint)
            unit.webhooks.end_rest(endpoint.id)
            added = unit.webhook_deliveries.create(
                id=delivery_id,
                endpoint_id=endpoint.id,
                event_id=new_id(),
                type=TEST,
                object_id=endpoint.id,
                due_at=unit.now(),
            )
            return DeliveryView.of(added)

    def get_page(
        self,
        endpoint_id: UUID | str | None = None,
        asked: PageQuery = FIRST_PAGE,
        *,
        owner: UUID | None = None,
        state: DeliveryState | None = None,
        object_id: UUID | None = None,
    ) -> Page[DeliveryView]:
        """A page of deliveries, newest first: of an endpoint, or else of all of the owner's.

        Among these are those to the addresses that jobs and runs have named. Raises `NotFound`.
        """
        owner = read_owner(owner)
        with self._ledger.transaction() as unit:
            found = None if endpoint_id is None else found_endpoint(unit, endpoint_id, owner).id
            page = unit.webhook_deliveries.page_of(
                asked,
                endpoint_id=found,
                user_id=owner,
                is_everybodys=owner is None,
                state=state,
                object_id=object_id,
            )
            return page.of(DeliveryView.of)

    def find(self, given: str) -> UUID:
        """The id of the only delivery whose id begins so. Raises the errors of `find_id`."""
        with self._ledger.transaction() as unit:
            return find_id(unit.webhook_deliveries, "delivery", given)

    def replay(
        self,
        delivery_id: UUID | str,
        *,
        endpoint_id: UUID | None = None,
        owner: UUID | None = None,
    ) -> DeliveryView:
        """Send an event once more, under the same id, with all its attempts anew.

        Raises `NotFound`, and `WrongState` while its endpoint is disabled.
        """
        with self._ledger.transaction() as unit:
            delivery, endpoint = _delivery(unit, delivery_id, owner)
            if endpoint_id is not None and endpoint.id != endpoint_id:
                raise NotFound(f"There is no delivery {delivery_id} of this webhook.")
            _check_enabled(endpoint)
            unit.webhooks.end_rest(endpoint.id)
            return DeliveryView.of(unit.webhook_deliveries.replay(delivery.id) or delivery)


def _delivery(
    unit: UnitOfWork, given: UUID | str, owner: UUID | None
) -> tuple[WebhookDelivery, WebhookEndpoint]:
    found = unit.webhook_deliveries.find(
        read_id(given, "delivery"), user_id=owner, is_anybodys=owner is None
    )
    if found is None:
        raise NotFound(f"There is no delivery {given}.")
    return found


def _check_enabled(endpoint: WebhookEndpoint) -> None:
    if endpoint.disabled_at is not None:
        raise WrongState("The webhook is disabled; enable it first.")
