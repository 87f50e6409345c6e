"""The servers of a local deployment, PostgreSQL and Valkey, and the lines to them."""

import os
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import psycopg2
import redis

from promptstack.chaos.links import Lines
from promptstack.embedded.account import data_folder
from promptstack.embedded.postgres import Postgres
from promptstack.embedded.servers import remove
from promptstack.embedded.valkey import Valkey

POSTGRES_DIES_SECONDS = 20.0


class Servers:
    """One PostgreSQL and one Valkey in a folder, which keep what they have accepted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._postgres = Postgres(folder, durable=True, notify=lambda line: None)
        self._valkey = Valkey(folder, durable=True)
        self.postgres_lock = threading.Lock()
        """For one fault at a time."""
        self.redis_lock = threading.Lock()
        self.lines = Lines()

    def start(self) -> None:
        """Start both, and a second way to each."""
        self.database_url = self._postgres.start(None)
        self.redis_url = self._valkey.start(None)
        socket = Path(parse_qs(urlsplit(self.database_url).query)["host"][0], ".s.PGSQL.5432")
        port = self.lines.open(str(socket))
        self.database_url_by_line = f"postgresql+psycopg2://postgres@127.0.0.1:{port}/promptstack"
        port = self.lines.open(unquote(urlsplit(self.redis_url).path))
        self.redis_url_by_line = f"redis://127.0.0.1:{port}/0"

    def stop(self) -> None:
        """Stop both and delete their data."""
        self.lines.close()
        remove(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)

    def flush_redis(self) -> None:
        """Delete all that Redis has."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.flushall()

    def kill_redis(self, seconds: float, *, replace: bool) -> None:
        """End Redis by SIGKILL; back after so many `seconds`, with its data or empty."""
        with redis.Redis.from_url(self.redis_url) as client:
            pid = client.info("server")["process_id"]
        os.kill(pid, signal.SIGKILL)
        time.sleep(seconds)
        if replace:
            self._valkey.stop(patience=0.0)
            self._valkey.remove()
        self._valkey.start(None)

    def fill_redis(self, seconds: float) -> None:
        """Let Redis refuse writes for lack of memory."""
        with redis.Redis.from_url(self.redis_url) as client:
            client.config_set("maxmemory", "1")
            try:
                time.sleep(seconds)
            finally:
                client.config_set("maxmemory", "0")

    def kill_postgres(self, seconds: float) -> None:
        """End PostgreSQL by SIGKILL; back after so many `seconds`, by its own log."""
        data = data_folder(self._folder) or self._folder
        pid = int((data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, signal.SIGKILL)
        time.sleep(seconds)
        self._postgres.start(None)

    def restart_postgres(self, seconds: float) -> None:
        """Stop PostgreSQL in order, which ends all connections; back after so many `seconds`."""
        self._postgres.stop()
        time.sleep(seconds)
        self._postgres.start(None)

    def fill_postgres(self, seconds: float) -> None:
        """Let PostgreSQL refuse writes, as it does with a full disk or after a failover."""
        self._set_read_only("on")
        try:
            time.sleep(seconds)
        finally:
            self._set_read_only("off")

    def cut_connections(self) -> None:
        """Let both servers close all their connections."""
        with suppress(redis.RedisError), redis.Redis.from_url(self.redis_url) as client:
            client.client_kill_filter(_type="normal", skipme=True)
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(CUT)

    def _set_read_only(self, value: str) -> None:
        connection = self._connect()
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
            cursor.execute("SELECT pg_reload_conf()")
        connection.close()

    def _connect(self) -> "psycopg2.extensions.connection":
        return psycopg2.connect(dsn(self.database_url))


CUT = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def dsn(url: str) -> str:
    """Spell an SQLAlchemy URL as libpq wants it."""
    return url.replace("postgresql+psycopg2://", "postgresql://", 1)
