"""Why nobody more may watch."""

from promptstack.config.errors import PromptStackError


class WatchersFull(PromptStackError):
    """As many watch here as may (MAX_WATCHERS)."""

    code = "WATCHERS_FULL"
    transient = True


class TooManyWatchers(PromptStackError):
    """The user watches as much at once as one may (MAX_WATCHERS_OF_USER)."""

    code = "TOO_MANY_WATCHERS"
    transient = True
