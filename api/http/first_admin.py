"""The first super_admin, from the settings, at the API's start."""

import asyncio
import itertools
import logging

from anyio import to_thread

from promptstack.config.errors import ConfigurationError, PromptStackError
from promptstack.config.settings import Settings
from promptstack.repositories.errors import LedgerOutdated, TransientLedgerError
from promptstack.services.errors import InvalidInput
from promptstack.tasks.composition import PromptStack

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0


def create_first_admin(stack: PromptStack) -> bool:
    """Add the first super_admin where there is none. Returns False while the ledger is away.

    Raises `ConfigurationError` for an address or a password that can't be one's.
    """
    email = stack.settings.first_admin_email
    if email is None:
        return True
    try:
        if stack.users.create_first_admin(email, lambda: _read_password(stack.settings)):
            logger.info("%s is the first super_admin", email)
    except (TransientLedgerError, LedgerOutdated):
        return False
    except InvalidInput as error:
        raise ConfigurationError(f"FIRST_ADMIN_EMAIL, FIRST_ADMIN_PASSWORD_FILE: {error}") from None
    return True


async def keep_trying(stack: PromptStack) -> None:
    """Do so once the ledger is there, for a server that started before it."""
    for _ in itertools.count():
        try:
            if await to_thread.run_sync(create_first_admin, stack):
                return
        except PromptStackError as error:
            logger.warning("there is no first super_admin: %s", error)
            return
        await asyncio.sleep(RETRY_SECONDS)


def _read_password(settings: Settings) -> str:
    file = settings.first_admin_password_file
    if file is None:  # the settings take one with the other
        raise ConfigurationError("FIRST_ADMIN_PASSWORD_FILE is not set.")
    try:
        return file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"FIRST_ADMIN_PASSWORD_FILE can't be read: {type(error).__name__}."
        ) from error
