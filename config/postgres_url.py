"""Turns a database URL, in any spelling of libpq and other tools, into SQLAlchemy's."""

import re
from typing import Any
from urllib.parse import quote, unquote

import psycopg2
from psycopg2.extensions import make_dsn
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

DRIVERS = frozenset({"postgres", "postgresql", "postgresql+psycopg2", "postgresql+psycopg"})
PLACE = re.compile(
    r"^(?P<who>[^/?]*://(?:[^?]*@)?)(?P<hosts>[^/?@]*)(?P<name>/[^?]*)?(?P<query>\?.*)?$"
)
HOST = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>\d*))?")
SHAPE = "is not a database URL (postgresql://user:password@host/name)"


def postgres_url(url: str) -> str:
    """Add the driver and check the URL. Raises `ValueError` without any secret."""
    url = url.strip()
    if not url.isprintable():
        raise ValueError("has a line end or a control character in it; take it out")
    try:
        parsed = make_url(_for_sqlalchemy(url))
    except (ArgumentError, ValueError) as error:
        # Their own words may quote the password.
        raise ValueError(SHAPE) from error
    if parsed.drivername not in DRIVERS:
        raise ValueError(f"must begin with postgresql://, not {parsed.drivername}://")
    parsed = parsed.set(drivername="postgresql+psycopg2")
    dialect: Any = parsed.get_dialect()()
    try:
        _, parameters = dialect.create_connect_args(parsed)
        make_dsn(**parameters)
    except ArgumentError as error:
        raise ValueError(SHAPE) from error
    except psycopg2.ProgrammingError as error:
        raise ValueError(_unknown_option(str(error))) from error
    return parsed.render_as_string(hide_password=False)


def with_password(url: str, password: str) -> str:
    """Add a password to a URL that holds none. Raises `ValueError` where it names no user."""
    parsed = make_url(url)
    if parsed.password is not None or "password" in parsed.query:
        return url
    if parsed.username is None:
        raise ValueError("DATABASE_URL must name the user to whom DATABASE_PASSWORD belongs")
    return parsed.set(password=password).render_as_string(hide_password=False)


def _for_sqlalchemy(url: str) -> str:
    """Move several hosts, or a Unix socket, to the place where SQLAlchemy expects them."""
    found = PLACE.match(url)
    if found is None or not re.search(r",|%2F", found["hosts"], re.IGNORECASE):
        return url
    places = [HOST.fullmatch(place) for place in found["hosts"].split(",")]
    if None in places:
        raise ValueError(SHAPE)
    hosts = ",".join(unquote(place["host"].strip("[]")) for place in places if place)
    ports = ",".join(place["port"] or "5432" for place in places if place)
    query = f"{found['query'] or '?'}&host={quote(hosts, safe='')}&port={quote(ports, safe='')}"
    return f"{found['who']}{found['name'] or '/'}{query.replace('?&', '?')}"


def _unknown_option(said: str) -> str:
    option = re.search(r'invalid connection option "(\w+)"', said)
    if option is None:
        return SHAPE
    return f"has an option that PostgreSQL's driver does not know: {option[1]}; leave it out"
