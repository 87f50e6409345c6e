"""Passwords: which are good enough, and how they are kept (Argon2id)."""

import re
import threading
import unicodedata
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_storable

if TYPE_CHECKING:
    from pwdlib import PasswordHash

MIN_CHARACTERS, MAX_CHARACTERS = 12, 128
LEAST_SCORE = 3
"""Of zxcvbn's 0 to 4: over 10^8 guesses."""
MOST_JUDGED = 72
"""More characters take zxcvbn long, and make no password weaker."""
HASHES_AT_ONCE = 2
"""In a process. Each takes 64 MiB."""
_JUDGING = threading.Lock()
"""zxcvbn keeps the words of a person in a table of the module."""


class Passwords:
    """Judges passwords, hashes them and compares them; a few at once, as each takes much memory."""

    def __init__(self, hasher: "PasswordHash | None" = None) -> None:
        """Take another hasher than the recommended one; for tests."""
        self._given = hasher
        self._slots = threading.BoundedSemaphore(HASHES_AT_ONCE)

    @cached_property
    def _hasher(self) -> "PasswordHash":
        if self._given is not None:
            return self._given
        from pwdlib import PasswordHash  # noqa: PLC0415 - many processes never need it

        return PasswordHash.recommended()

    @cached_property
    def _nobodys(self) -> str:
        return self._hasher.hash("of nobody")

    def check(self, password: str, *, email: str, name: str = "") -> None:
        """Raise `InvalidInput` for a password that is too short, too long or easily guessed."""
        check_storable(password, "The password")
        if not MIN_CHARACTERS <= len(password) <= MAX_CHARACTERS:
            raise InvalidInput(
                f"A password has {MIN_CHARACTERS} to {MAX_CHARACTERS} characters; "
                "several words make a good one."
            )
        from zxcvbn import zxcvbn  # noqa: PLC0415 - its lists take a moment to load

        words = [email, name, *re.split(r"[^\w]+", f"{email} {name}"), "promptstack"]
        with _JUDGING:
            judged = zxcvbn(password[:MOST_JUDGED], user_inputs=[word for word in words if word])
        if judged["score"] < LEAST_SCORE:
            said: Sequence[str] = [
                judged["feedback"]["warning"],
                *judged["feedback"]["suggestions"],
            ]
            reasons = " ".join(f"{each.rstrip('.')}." for each in said if each)
            raise InvalidInput(f"The password is too easily guessed. {reasons}".strip())

    def hash(self, password: str) -> str:
        """Return what is kept of a password."""
        with self._slots:
            return self._hasher.hash(_normalised(password))

    def verify(self, password: str, kept: str | None) -> tuple[bool, str | None]:
        """Whether this is the password, and a new hash if the old one's parameters are outdated.

        Where nothing is kept it takes as long, so that nobody learns by it who has an account.
        """
        if len(password) > MAX_CHARACTERS:
            password = password[:MAX_CHARACTERS] + "\x00"  # nobody's
        with self._slots:
            nobodys = self._nobodys  # made at the first comparison, whoever it is for
            is_right, rehashed = self._hasher.verify_and_update(
                _normalised(password), kept or nobodys
            )
        return (is_right, rehashed) if kept is not None else (False, None)


def _normalised(password: str) -> bytes:
    """The same for each keyboard: a letter with a mark has two codes in Unicode."""
    return unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
