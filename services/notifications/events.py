"""What users may be told by mail."""

from enum import StrEnum


class NotifyEvent(StrEnum):
    """What of their runs users may be told by mail (`users.notify`)."""

    RUN_ENDED = "run_ended"
    """It is completed, or was cancelled."""
    RUN_FAILED = "run_failed"
    """It failed or expired; its budget was not the reason."""
    RUN_BUDGET = "run_budget"
    """It ended since a limit of cost was reached: its own, a key's, or a user's."""
