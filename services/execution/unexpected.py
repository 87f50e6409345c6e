"""Unexpected errors, as they may be shown."""

import logging

from promptstack.config.errors import PromptStackError
from promptstack.config.logging import log_unexpected

logger = logging.getLogger(__name__)


def known(error: Exception) -> PromptStackError:
    """The error itself, or one that may be shown in place of an unexpected one.

    The message of an unexpected error may quote a prompt, so only its type and traceback are
    logged.
    """
    if isinstance(error, PromptStackError):
        return error
    log_unexpected(logger, "a job failed", error)
    return PromptStackError(
        f"The worker met an unexpected {type(error).__name__}; its log has the traceback."
    )
