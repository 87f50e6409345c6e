"""Webhooks: addresses that are told how jobs and runs end."""

from collections.abc import Sequence
from typing import Unpack

from promptstack_client.calls import Asked
from promptstack_client.methods import AnySender, Resource, lists, sends
from promptstack_client.models.base import Id, id_of
from promptstack_client.models.webhooks import (
    Delivery,
    ShownSecret,
    ShownWebhook,
    SigningSecret,
    Webhook,
)
from promptstack_client.options import DeliveryListOptions, DeliveryOptions, ListOptions


class Webhooks(Resource[AnySender]):
    """Addresses that are told of events, and what they were told."""

    @sends("POST", "/webhooks", ShownWebhook, keyed=True)
    def create(
        self,
        url: str,
        *,
        events: Sequence[str] | None = None,
        description: str | None = None,
        idempotency_key: str | None = None,
    ) -> Asked:
        """Have an address told of events, of all where none are named. Keep its secret."""
        body = {"url": url, "events": events, "description": description}
        return Asked(body=body, idempotency_key=idempotency_key)

    @sends("GET", "/webhooks/{webhook_id}", Webhook)
    def get(self, webhook: Webhook | Id) -> Asked:
        """Show a webhook."""
        return _of(webhook)

    @lists("/webhooks", Webhook, "webhooks")
    def list(self, **options: Unpack[ListOptions]) -> Asked:
        """List webhooks, the newest first."""
        return Asked(query=options)

    @sends("PATCH", "/webhooks/{webhook_id}", Webhook)
    def update(
        self,
        webhook: Webhook | Id,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Asked:
        """Change a webhook. While it is not enabled, events are kept for some days."""
        changes = {"url": url, "events": events, "description": description, "enabled": enabled}
        return Asked({"webhook_id": id_of(webhook)}, body=changes)

    @sends("DELETE", "/webhooks/{webhook_id}", type(None))
    def delete(self, webhook: Webhook | Id) -> Asked:
        """Tell an address nothing any more."""
        return _of(webhook)

    @sends("POST", "/webhooks/{webhook_id}/rotate", ShownWebhook, keyed=True)
    def rotate(self, webhook: Webhook | Id, *, idempotency_key: str | None = None) -> Asked:
        """Give a webhook another secret; the one before signs for a day as well."""
        return Asked({"webhook_id": id_of(webhook)}, idempotency_key=idempotency_key)

    @sends("POST", "/webhooks/{webhook_id}/test", Delivery, keyed=True)
    def test(self, webhook: Webhook | Id, *, idempotency_key: str | None = None) -> Asked:
        """Send an event `webhook.test`."""
        return Asked({"webhook_id": id_of(webhook)}, idempotency_key=idempotency_key)

    @lists("/webhooks/{webhook_id}/deliveries", Delivery, "deliveries")
    def deliveries(self, webhook: Webhook | Id, **options: Unpack[DeliveryOptions]) -> Asked:
        """List what an address was told, the newest first."""
        return Asked({"webhook_id": id_of(webhook)}, options)

    @lists("/webhooks/deliveries", Delivery, "deliveries")
    def all_deliveries(self, **options: Unpack[DeliveryListOptions]) -> Asked:
        """List what all addresses were told, also those that jobs and runs name themselves."""
        return Asked(query=options)

    @sends("POST", "/webhooks/deliveries/{delivery_id}/replay", Delivery)
    def replay(self, delivery: Delivery | Id) -> Asked:
        """Tell of an event once more."""
        return Asked({"delivery_id": id_of(delivery)})

    @sends("GET", "/webhooks/secret", SigningSecret)
    def secret(self, *, owner: str | None = None) -> Asked:
        """Show whether you have a secret for the addresses that your jobs and runs name."""
        return Asked(query={"owner": owner})

    @sends("POST", "/webhooks/secret", ShownSecret, keyed=True)
    def rotate_secret(self, *, idempotency_key: str | None = None) -> Asked:
        """Make that secret, or another one. Keep it: it is not shown again."""
        return Asked(idempotency_key=idempotency_key)


def _of(webhook: Webhook | Id) -> Asked:
    return Asked({"webhook_id": id_of(webhook)})
