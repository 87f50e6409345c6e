"""Which settings a process has started with, for the audit log."""

import logging
from urllib.parse import urlsplit

from pydantic import SecretStr

from promptstack.config.errors import PromptStackError
from promptstack.config.settings import Settings
from promptstack.repositories.audit import AuditFilter
from promptstack.repositories.pages import PageQuery
from promptstack.services.audit.actions import Action, ObjectKind
from promptstack.services.audit.actor import Actor
from promptstack.services.audit.detail import checked_detail
from promptstack.tasks.composition import PromptStack

logger = logging.getLogger(__name__)

SECRET = "set"  # noqa: S105 - what is shown of one


def record_settings(stack: PromptStack, process: str) -> None:
    """Record the settings that differ from their defaults, if they are not those seen last.

    Never raises: a process starts also while the ledger is away or waits for its migrations.
    """
    detail = checked_detail(
        {"version": stack.settings.version, "settings": changed_settings(stack.settings)}
    )
    seen = ObjectKind.PROCESS.of(process)
    try:
        with stack.ledger.transaction() as unit:
            wanted = AuditFilter(action=Action.SETTINGS_SEEN, object_id=seen.id)
            last = unit.audit.find(wanted, PageQuery(1)).rows
            if [entry.detail for entry in last] != [detail]:
                stack.audit.record(
                    unit,
                    actor=Actor.system(),
                    action=Action.SETTINGS_SEEN,
                    object=seen,
                    detail=detail,
                )
    except PromptStackError as error:
        logger.warning("the settings of this start are not in the audit log: %s", error)


def changed_settings(settings: Settings) -> dict[str, object]:
    """The settings that differ from their defaults; of a secret, only that it is set."""
    changed = {}
    for name, field in sorted(Settings.model_fields.items()):
        value = getattr(settings, name)
        if value != field.get_default(call_default_factory=True, validated_data={}):
            changed[name.upper()] = _shown(value)
    return changed


def _shown(value: object) -> object:
    if isinstance(value, SecretStr):
        return SECRET
    if isinstance(value, str) and "://" in value:
        return ";".join(map(_place, value.split(";")))
    return value


def _place(url: str) -> str:
    """A URL without what may be a password: its user, its path and its options."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
