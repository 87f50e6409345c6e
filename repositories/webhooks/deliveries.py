"""The log of deliveries, as the users of endpoints see it."""

from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update

from promptstack.repositories.base import BaseRepository
from promptstack.repositories.pages import Page, PageQuery
from promptstack.repositories.webhook_models import DeliveryState, WebhookDelivery, WebhookEndpoint
from promptstack.repositories.webhooks.endpoints import belongs_to


class WebhookDeliveryRepository(BaseRepository[WebhookDelivery]):
    """The deliveries of all endpoints."""

    model = WebhookDelivery

    def replay(self, delivery_id: UUID) -> WebhookDelivery | None:
        """Send an event again, as if it were new; None where there is no such delivery.

        It counts as a claim: the failure of an attempt that is still under way is an old one.
        """
        changed = (
            update(WebhookDelivery)
            .where(WebhookDelivery.id == delivery_id)
            .values(
                state=DeliveryState.PENDING,
                due_at=func.now(),
                claims=WebhookDelivery.claims + 1,
                failures=0,
                finished_at=None,
            )
            .returning(WebhookDelivery)
        )
        how = {"populate_existing": True}
        return self._session.scalars(changed, execution_options=how).one_or_none()

    def find(
        self, delivery_id: UUID, *, user_id: UUID | None, is_anybodys: bool
    ) -> tuple[WebhookDelivery, WebhookEndpoint] | None:
        """A delivery of this user, or of anybody, and its endpoint."""
        query = (
            select(WebhookDelivery, WebhookEndpoint)
            .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
            .where(WebhookDelivery.id == delivery_id)
        )
        if not is_anybodys:
            query = query.where(belongs_to(user_id))
        row = self._session.execute(query).one_or_none()
        return None if row is None else (row[0], row[1])

    def page_of(
        self,
        asked: PageQuery,
        *,
        endpoint_id: UUID | None = None,
        user_id: UUID | None = None,
        is_everybodys: bool = False,
        state: DeliveryState | None = None,
        object_id: UUID | None = None,
    ) -> Page[WebhookDelivery]:
        """A page of the deliveries to an endpoint, or to all of a user, or to all."""
        conditions: list[ColumnElement[bool]] = []
        if endpoint_id is not None:
            conditions.append(WebhookDelivery.endpoint_id == endpoint_id)
        elif not is_everybodys:
            theirs = select(WebhookEndpoint.id).where(belongs_to(user_id))
            conditions.append(WebhookDelivery.endpoint_id.in_(theirs))
        if state is not None:
            conditions.append(WebhookDelivery.state == state)
        if object_id is not None:
            conditions.append(WebhookDelivery.object_id == object_id)
        return self.get_page(asked, *conditions)
