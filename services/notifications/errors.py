"""What can go wrong with a mail, and whether it is tried again."""

from promptstack.config.errors import PromptStackError


class MailNotConfigured(PromptStackError):
    """No mail server is set."""

    code = "MAIL_NOT_CONFIGURED"
    transient = True
    counts_as_failure = False


class MailServerAway(PromptStackError):
    """The mail server can't be reached, is not safe, or lets us in no more: no mail's own fault.

    All mails wait for it until their deadline.
    """

    code = "MAIL_SERVER_AWAY"
    transient = True
    counts_as_failure = False


class MailPostponed(PromptStackError):
    """The mail server does not take this mail now (4xx)."""

    code = "MAIL_POSTPONED"
    transient = True
    counts_as_failure = False

    def __init__(
        self, message: str, *, detail: str | None = None, reply_code: int | None = None
    ) -> None:
        super().__init__(message, detail=detail)
        self.reply_code = reply_code


class MailRefused(PromptStackError):
    """The mail server will never take this mail (5xx), or it can't be addressed."""

    code = "MAIL_REFUSED"

    def __init__(
        self, message: str, *, detail: str | None = None, reply_code: int | None = None
    ) -> None:
        super().__init__(message, detail=detail)
        self.reply_code = reply_code


class MailAcceptanceUnknown(PromptStackError):
    """The mail was sent, and no reply came: the server may have accepted it. It is sent again."""

    code = "MAIL_ACCEPTANCE_UNKNOWN"
    transient = True
