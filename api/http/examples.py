"""An example of each body, by its operation: what `/docs` shows and generated clients document."""

from collections.abc import Mapping
from typing import Any

_SUMMARISE = {"prompt": "Summarise: The harbour was quiet.", "max_tokens": 100}
_DOCUMENT = {"text": "The harbour was quiet.", "source": "harbour.txt"}
_CAPS = {"day": "10.00", "month": None}
_ID = "01900000-0000-7000-8000-000000000000"

EXAMPLES: Mapping[str, Any] = {
    "create_generation": _SUMMARISE,
    "create_chat": {**_SUMMARISE, "wait": 10},
    "create_embedding": _DOCUMENT,
    "create_jobs": {"jobs": [{**_SUMMARISE, "idempotency_key": "order-1"}, _DOCUMENT]},
    "create_operation": {
        "action": "retry",
        "filter": {"error": "PROVIDER_OVERLOADED", "since": "2026-11-30T08:00:00Z"},
    },
    "create_embedding_run": {
        "items": ["The harbour was quiet.", {"text": "A boat left.", "custom_id": "2"}],
        "name": "harbour",
    },
    "create_generation_run": {
        "items": [{"text": "The harbour was quiet."}],
        "template": "Summarise: {text}",
        "max_tokens": 100,
        "max_cost_usd": "0.50",
    },
    "create_collection": {"name": "handbook", "language": "english"},
    "change_collection": {"description": "What every new sailor reads."},
    "put_document": {**_DOCUMENT, "metadata": {"chapter": 1}},
    "search": {
        "query": "Which boats left the harbour?",
        "where": {"chapter": 1},
        "hybrid": True,
        "limit": 5,
    },
    "create_key": {"name": "nightly", "scopes": ["runs:write", "runs:read"]},
    "set_key_budget": _CAPS,
    "set_user_budget": _CAPS,
    "set_deployment_budget": _CAPS,
    "login": {"email": "ada@example.org", "password": "three green boats sail slowly"},
    "refresh": {"refresh_token": "psr_..."},
    "change_password": {
        "current_password": "three green boats sail slowly",
        "new_password": "nine grey gulls sleep soundly",
    },
    "create_user": {"email": "grace@example.org", "name": "Grace Hopper"},
    "change_user": {"name": "Grace B. M. Hopper"},
    "reset_password": {"password": "nine grey gulls sleep soundly"},
    "set_flag": {"rules": [{"roles": ["admin"]}]},
    "send_notification": {
        "user_id": _ID,
        "subject": "Maintenance",
        "message": "On Sunday at 22:00 UTC.",
    },
    "choose_events": {"events": ["run_failed"]},
    "create_webhook": {
        "url": "https://example.org/hooks",
        "events": ["response.completed", "response.failed", "run.completed"],
    },
    "change_webhook": {"description": "The shop's orders."},
    "retry_run": {"max_cost_usd": "1.00"},
    "resume_run": {"max_cost_usd": "1.00"},
}
"""Each is accepted as it stands, apart from what it refers to; a test sends them."""
