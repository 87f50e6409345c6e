"""What sends events to webhooks, made of a worker's settings."""

from promptstack.services.webhooks.health import EndpointHealth
from promptstack.services.webhooks.sender import WebhookSender
from promptstack.services.webhooks.upkeep import WebhookUpkeep
from promptstack.tasks import from_settings
from promptstack.tasks.composition import PromptStack


def open_sender(stack: PromptStack) -> WebhookSender:
    """What sends events; somebody has to close it."""
    # It loads an HTTP client, which a worker needs once it has started.
    from promptstack.services.webhooks.receivers import Receivers  # noqa: PLC0415

    settings = stack.settings
    receivers = Receivers(
        from_settings.webhook_rules(settings),
        timeout_seconds=settings.webhook_timeout_seconds,
        ca_file=str(settings.tls_ca_file) if settings.tls_ca_file else None,
    )
    health = EndpointHealth(
        stack.notifications,
        disable_after=settings.webhook_disable_failures,
        # As long as the wait before the first retry.
        rest_seconds=[*settings.webhook_retry_seconds, 0.0][1],
    )
    return WebhookSender(
        stack.ledger,
        stack.loop,
        receivers,
        stack.webhook_secrets,
        health,
        retry_seconds=settings.webhook_retry_seconds,
        # Within it, a worker that lives has noted what came of it.
        lease_seconds=settings.webhook_timeout_seconds + settings.worker_lost_seconds,
    )


def open_upkeep(stack: PromptStack) -> WebhookUpkeep:
    """What looks after webhooks."""
    return WebhookUpkeep(
        stack.ledger,
        stack.webhook_secrets,
        seals_anew=stack.settings.previous_secret_key is not None,
    )
