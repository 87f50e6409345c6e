"""What can go wrong with webhooks."""

from promptstack.config.errors import PromptStackError


class SecretUnreadable(PromptStackError):
    """A webhook's secret can't be decrypted: it was encrypted with another SECRET_KEY."""

    code = "WEBHOOK_SECRET_UNREADABLE"


class NamesBusy(PromptStackError):
    """So many names of receivers are looked up that another one has to wait."""

    code = "WEBHOOK_NAMES_BUSY"
    transient = True


class ForbiddenAddress(PromptStackError):
    """A webhook's name leads into a private network; nothing was sent."""

    code = "WEBHOOK_ADDRESS_FORBIDDEN"
