"""Webhooks of a real server."""

import uuid

import pytest

from promptstack_client import Client, Conflict, NotFound


def test_a_webhook_from_its_making_to_its_end(client: Client) -> None:
    made = client.webhooks.create("https://example.org/hooks", events=["run.completed"])
    assert made.secret.startswith("whsec_")
    assert client.webhooks.rotate(made).secret != made.secret
    test = client.webhooks.test(made)
    assert [delivery.id for delivery in client.webhooks.deliveries(made)] == [test.id]
    assert test.id in [delivery.id for delivery in client.webhooks.all_deliveries()]
    changed = client.webhooks.update(made, description="Orders", enabled=False)
    assert (changed.events, changed.description, changed.enabled) == (
        ("run.completed",),
        "Orders",
        False,
    )
    assert made.id in [webhook.id for webhook in client.webhooks.list()]
    client.webhooks.delete(made)
    with pytest.raises(NotFound):
        client.webhooks.get(made)


def test_a_secret_is_shown_once(client: Client) -> None:
    key = str(uuid.uuid4())
    assert client.webhooks.rotate_secret(idempotency_key=key).secret.startswith("whsec_")
    with pytest.raises(Conflict):
        client.webhooks.rotate_secret(idempotency_key=key)
    assert client.webhooks.secret().exists
