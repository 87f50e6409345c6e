"""E-mail addresses: one spelling of each, so that nobody has two accounts."""

import re
import unicodedata

from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_name

MAX_EMAIL_CHARACTERS = 254
"""The limit of RFC 5321; PostgreSQL can index it."""
OPERATOR = "operator@localhost"
"""The user of the command line: who reaches the ledger without a key may do everything."""
MAX_LABEL = 63
"""Characters of a part of a host's name (RFC 1035)."""
_ADDRESS = re.compile(r'[^\s@<>()\[\],;:\\"]{1,64}@\w([\w.-]*\w)?')


def normalised_email(email: str) -> str:
    """Return an address in its one spelling. Raises `InvalidInput` for what is no address.

    Letters with marks have two codes in Unicode, a host has two names, and no mail server tells
    upper from lower case. Characters that look like others, or like nothing, are refused. A host
    need not have a dot: `operator@localhost` is an address.
    """
    email = check_name(email.strip(), "The e-mail address")
    email = unicodedata.normalize("NFC", email).lower()
    if len(email) > MAX_EMAIL_CHARACTERS:
        raise InvalidInput(f"An e-mail address has at most {MAX_EMAIL_CHARACTERS} characters.")
    person, _, host = email.rpartition("@")
    is_plain = unicodedata.normalize("NFKC", email) == email and not any(map(_is_unseen, email))
    if not is_plain or _ADDRESS.fullmatch(email) is None or "" in person.split("."):
        raise InvalidInput(f"{email[:80]!r} is not an e-mail address.")
    try:
        # `xn--...` and the same name in letters are one host.
        return f"{person}@{host_in_letters(host)}"
    except UnicodeError:
        raise InvalidInput(f"{email[:80]!r} is not an e-mail address.") from None


def host_in_letters(host: str) -> str:
    """A host's name as people read it, by IDNA 2008. Raises `UnicodeError` for what is none.

    Python's own codec is of 2003, by which `straße` is `strasse`: another host today.
    """
    import idna  # noqa: PLC0415 - it takes long, and most hosts need none of it

    is_plain = host.isascii() and not any(part.startswith("xn--") for part in host.split("."))
    return _checked(host) if is_plain else idna.decode(idna.encode(host))


def host_in_ascii(host: str) -> str:
    """A host's name as every mail server takes it. Raises `UnicodeError` for what is none."""
    import idna  # noqa: PLC0415

    return _checked(host) if host.isascii() else idna.encode(host).decode()


def _checked(host: str) -> str:
    if any(not 0 < len(part) <= MAX_LABEL for part in host.split(".")):
        raise UnicodeError("a part of the host is empty or too long")
    return host


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in {"Cf", "Co", "Cn"}
