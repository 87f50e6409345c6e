"""E-mail addresses: one spelling of each, so that nobody has two accounts."""

import re
import unicodedata

from promptstack.services.errors import InvalidInput
from promptstack.services.text import check_name

MAX_EMAIL_CHARACTERS = 254
"""The limit of RFC 5321; PostgreSQL can index it."""
OPERATOR = "operator@localhost"
"""The user of the command line: who reaches the ledger without a key may do everything."""
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
        return f"{person}@{host.encode('idna').decode('idna')}"
    except UnicodeError:
        raise InvalidInput(f"{email[:80]!r} is not an e-mail address.") from None


def _is_unseen(character: str) -> bool:
    return unicodedata.category(character) in {"Cf", "Co", "Cn"}
