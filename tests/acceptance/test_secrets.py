"""Everything is done, rightly and wrongly, with marked secrets: none is left in a wrong place."""

import os
import ssl
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit
from uuid import UUID

import pytest
from httpx2 import Client, Response
from redis import Redis

from promptstack.api.http.browsers import CSRF_HEADER
from promptstack.repositories.access_models import Role, Scope
from promptstack.simulator.process import SimulatorProcess
from promptstack.tasks.worker_services import WorkerServices
from tests.doors import Door
from tests.flower import FlowerClient
from tests.mail_server import USER, MailServer, first, mail_server
from tests.processes import Process, run, wait_until
from tests.sweep import Sweep, in_ledger, in_redis, redis_traffic
from tests.tls import Authority

API = "/api/v1"
ODD = 'it\'s "{}" \\ %41 /~ü?>'
"""Around a secret that may hold any character."""
CONTENT = ("prompt", "item", "notification")
CONTENT_TABLES = {"answers", "chunks", "documents", "items", "jobs", "outcomes", "runs"} | {
    "attempts",
    "deliveries",
}
"""Where content belongs. Attempts and deliveries have what a provider or a mail server said, which
may quote it."""
CLI = str(Path(sys.executable).with_name("promptstack"))
COMMANDS = (
    ("doctor", "--json"),
    ("audit", "--json"),
    ("audit",),
    ("users", "list", "--json"),
    ("users", "show", "ada@example.org"),
    ("keys", "list", "--json"),
    ("jobs", "list", "--json"),
    ("runs", "list", "--json"),
    ("usage", "--json"),
    ("permissions",),
    ("notifications", "list", "--json"),
    ("budgets", "show", "--json"),
    ("flags", "list", "--json"),
)
"""What shows things, and no content."""

ATTEMPTS = ("attempts", "--json")


class Caller:
    """Sends requests, and looks through each answer."""

    def __init__(self, url: str, sweep: Sweep) -> None:
        self._client = Client(base_url=url, timeout=60)
        self._sweep = sweep

    def send(self, method: str, path: str, *, shows: tuple[str, ...] = (), **more: Any) -> Response:
        """Send a request whose answer `shows` some secrets on purpose."""
        answer = self._client.request(method, path, **more)
        lines = [f"{name}: {value}" for name, value in answer.headers.multi_items()]
        kind = "errors" if answer.is_error else "answers"
        self._sweep.look(f"HTTP {kind}", "\n".join([*lines, answer.text]), but=shows)
        return answer

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def sweep() -> Sweep:
    return Sweep()


@pytest.fixture
def mail(sweep: Sweep, tmp_path: Path) -> Iterator[MailServer]:
    """A mail server that quotes what it refuses: the login, then a mail for now, and one for good.

    Its replies are in ASCII.
    """
    password = sweep.make("SMTP password", ODD[:-4])
    text = sweep.make("notification", 'Dear "{}"')
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Authority(tmp_path).certificate("localhost"))
    plain = b64encode(f"\0{USER}\0{password}".encode()).decode()
    with mail_server(
        starttls=context,
        asks_login=True,
        password=password,
        on_login=first(f"535 No {USER} has {password}", f"535 No such login: {plain}"),
        on_data=first(f"451 Not now: {text}", None, f"550 Never: {text}"),
    ) as server:
        server.asked = text
        yield server


@pytest.fixture
def marked(
    sweep: Sweep,
    simulator: SimulatorProcess,
    mail: MailServer,
    environment: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[dict[str, str]]:
    """Settings with a marked secret wherever one may stand."""
    folder = tmp_path / "run-secrets"
    folder.mkdir()
    redis_password = sweep.make("Redis password", ODD)
    files = {
        "secret_key": sweep.make("SECRET_KEY", ODD),
        "previous_secret_key": sweep.make("PREVIOUS_SECRET_KEY", ODD),
        "redis_password": redis_password,
        "database_password": sweep.make("database password", ODD),
    }
    for name, secret in files.items():
        (folder / name).write_text(f"{secret}\n")
    variables = {
        "DEBUG": "true",
        "SECRETS_DIR": str(folder),
        "OPENAI_API_KEY": sweep.make("provider key", "sk-live/{}+x=="),
        "FLOWER_BASIC_AUTH": "watcher:" + sweep.make("Flower password", ODD[:-4]),
        "REDIS_URL": environment["REDIS_URL"].replace("unix://", "unix://marked@"),
        "SMTP_URL": f"smtp://{USER}:{quote(mail.password, safe='')}@localhost:{mail.port}",
        "MAIL_FROM": "stack@example.org",
        "TLS_CA_FILE": str(tmp_path / "authority.pem"),
        "JOB_MAX_RETRIES": "1",
        "LOG_FORMAT": "json",
    }
    with Redis.from_url(environment["REDIS_URL"]) as redis:
        everything = ["~*", "&*", "+@all"]
        redis.execute_command("ACL", "SETUSER", "marked", "on", f">{redis_password}", *everything)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        plain = {"REDIS_URL": environment["REDIS_URL"]}
        environment.update(variables)
        yield plain
        redis.acl_deluser("marked")


def test_no_secret_is_left_anywhere(
    sweep: Sweep,
    marked: dict[str, str],
    stack: WorkerServices,
    simulator: SimulatorProcess,
    mail: MailServer,
    environment: dict[str, str],
    start_worker: Callable[..., Process],
    start_flower: Callable[..., Process],
    open_door: Callable[..., Door],
    tmp_path: Path,
) -> None:
    redis = Redis.from_url(marked["REDIS_URL"])
    with redis_traffic(redis) as traffic:
        worker, door = start_worker(), open_door()
        basic = environment["FLOWER_BASIC_AUTH"]
        flower = FlowerClient(start_flower(FLOWER_BASIC_AUTH=basic), credentials=basic)
        caller = Caller(door.url, sweep)
        sign_in_and_out(sweep, caller, stack)
        jobs = work(sweep, caller, stack, simulator)
        jobs += notify(sweep, caller, stack, mail)
        commands(sweep, environment, tmp_path)
        sweep.look("Flower", flower.read_everything(*jobs))
        caller.close()
        for process in (door.process, worker, flower.process):
            command = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            sweep.look("command lines", command)
        code, said = door.end()
        assert code == 0
        sweep.look("API's log", door.log() + said)
        for process in (worker, flower.process):
            process.stop()
        sweep.look("worker's log", worker.output())
        sweep.look("Flower's log", flower.process.output())
        for place, content in in_redis(redis):
            sweep.look("Redis", place.encode() + content)
        for log in servers_logs(environment["REDIS_URL"]):
            sweep.look("servers' logs", f"{log.name}\n{log.read_text(errors='replace')}")
    sweep.look("Redis traffic", "\n".join(traffic))
    with stack.ledger.engine.connect() as connection:
        for table, rows in in_ledger(connection):
            but = CONTENT if table in CONTENT_TABLES else ()
            sweep.look(f"table {table}", rows, but=but)
    assert sweep.findings == [], "\n\n".join(map(str, sweep.findings))
    places = {place for place, size in sweep.looked_at.items() if size}
    assert places >= {
        "API's log",
        "worker's log",
        "Flower's log",
        "Flower",
        "HTTP answers",
        "HTTP errors",
        "Redis",
        "Redis traffic",
        "commands",
        "servers' logs",
        "table audit_log",
        "table users",
        "table api_keys",
        "table sessions",
        "table refresh_tokens",
    }


def servers_logs(redis_url: str) -> list[Path]:
    """What PostgreSQL and Valkey of this test session have logged."""
    folder = Path(unquote(urlsplit(redis_url).path)).parent.parent
    return [folder / "postgres.log", folder / "valkey.log"]


def sign_in_and_out(sweep: Sweep, caller: Caller, stack: WorkerServices) -> None:
    """Sign in rightly and wrongly, by password, token, cookie and key."""
    password = sweep.make("password", ODD)
    stack.users.create("ada@example.org", password=password, role=Role.SUPER_ADMIN)

    def log_in(**body: Any) -> Response:
        shown = ("access token", "refresh token", "cookie", "CSRF token")
        return caller.send("POST", f"{API}/auth/login", json=body, shows=shown)

    email = "ada@example.org"
    wrong = sweep.make("wrong password", ODD)
    assert log_in(email=email, password=wrong).status_code == 401
    assert log_in(email="nobody@example.org", password=wrong).status_code == 401
    # A password in a wrong place: people do that.
    assert log_in(email=wrong, password="x").status_code == 401
    for body in (
        {"email": email, "password": {"is": wrong}},
        {"email": email, "password": wrong, "cookie": wrong},
        {"email": email, "password": wrong, "otp": wrong},
        {"email": [wrong], "password": wrong},
        {"email": email, "passwort": wrong},
        {"email": email, "password": wrong * 100},
        wrong,
    ):
        answer = caller.send("POST", f"{API}/auth/login", json=body)
        assert answer.status_code == 422, answer.text
    for content in (f'{{"password": "{wrong}', f"email={email}&password={quote(wrong)}"):
        answer = caller.send("POST", f"{API}/auth/login", content=content.encode())
        assert answer.is_client_error

    for path in ("/healthz", "/openapi.json", "/docs"):
        assert caller.send("GET", path).status_code == 200
    tokens = log_in(email=email, password=password).json()
    access = sweep.know("access token", tokens["access_token"])
    first = sweep.know("refresh token", tokens["refresh_token"])
    bearer = {"Authorization": f"Bearer {access}"}
    assert caller.send("GET", f"{API}/auth/me", headers=bearer).status_code == 200
    for path in (
        f"/users?query={quote(wrong)}",
        f"/jobs?token={access}",
        f"/jobs/{access}",
        f"/keys/{first}/rotate",
        f"/{quote(wrong)}",
    ):
        caller.send("GET", API + path, headers=bearer)
    renewed = caller.send(
        "POST",
        f"{API}/auth/refresh",
        json={"refresh_token": first},
        shows=("next access token", "next refresh token"),
    ).json()
    sweep.know("next access token", renewed["access_token"])
    sweep.know("next refresh token", renewed["refresh_token"])
    new = sweep.make("new password", "another: " + ODD)
    bearer = {"Authorization": f"Bearer {renewed['access_token']}"}
    for current, wanted, status in (
        (wrong, new, 401),
        (password, "x" + wrong[:8], 422),
        (password, wrong * 10, 422),
        (password, new, 204),
    ):
        change = {"current_password": current, "new_password": wanted}
        answer = caller.send("POST", f"{API}/auth/password", json=change, headers=bearer)
        assert answer.status_code == status, answer.text
    reused = caller.send("POST", f"{API}/auth/refresh", json={"refresh_token": first})
    assert reused.json()["code"] == "REFRESH_TOKEN_REUSED"
    unknown = sweep.make("unknown token", "eyJhbGciOiJub25lIn0.e30.{}")
    basic = b64encode(f"{email}:{wrong}".encode()).decode()
    for headers in (
        {"Authorization": f"Bearer {unknown}"},
        {"Authorization": f"Bearer ps_{unknown}"},
        {"Authorization": f"Basic {basic}"},
        {"Authorization": unknown},
        {"X-API-Key": unknown},
        {"X-API-Key": access, **bearer},
        {"Cookie": f"promptstack={unknown}"},
        {unknown.replace(".", "-"): unknown},
        bearer,
    ):
        assert caller.send("GET", f"{API}/auth/me", headers=headers).status_code == 401
    body = {"refresh_token": unknown}
    assert caller.send("POST", f"{API}/auth/refresh", json=body).status_code == 401

    answer = log_in(email=email, password=new, cookie=True)
    cookie = sweep.know("cookie", answer.cookies["promptstack"])
    csrf = sweep.know("CSRF token", answer.json()["csrf_token"])
    browser = {"Cookie": f"promptstack={cookie}"}
    for token, status in (("", 403), (unknown, 403), (csrf, 201)):
        made = caller.send(
            "POST",
            f"{API}/keys",
            json={"name": "browser"},
            headers={**browser, CSRF_HEADER: token},
            shows=("browser's key",),
        )
        assert made.status_code == status
    sweep.know("browser's key", made.json()["secret"])
    out = caller.send("POST", f"{API}/auth/logout", headers={**browser, CSRF_HEADER: csrf})
    assert out.status_code == 204
    assert caller.send("GET", f"{API}/auth/me", headers=browser).status_code == 401
    by = {"Authorization": f"Bearer {log_in(email=email, password=new).json()['access_token']}"}
    keys_come_and_go(sweep, caller, by)


def keys_come_and_go(sweep: Sweep, caller: Caller, by: dict[str, str]) -> None:
    """Make, rotate, use and revoke a key."""
    made = caller.send("POST", f"{API}/keys", json={"name": "x"}, headers=by, shows=("key",))
    key = sweep.know("key", made.json()["secret"])
    where = f"{API}/keys/{made.json()['id']}"
    turned = caller.send("POST", f"{where}/rotate", headers=by, shows=("rotated key",))
    rotated = sweep.know("rotated key", turned.json()["secret"])
    assert caller.send("POST", f"{API}/keys", json={"name": 5}, headers=by).status_code == 422
    for secret in (key, rotated):
        assert caller.send("GET", f"{API}/jobs", headers={"X-API-Key": secret}).status_code == 200
        # A key has no keys of its own, and none stands in an address.
        headers = {"X-API-Key": secret}
        assert caller.send("GET", f"{API}/keys", headers=headers).status_code == 403
        caller.send("GET", f"{API}/jobs?api_key={secret}", headers=headers)
    assert caller.send("GET", f"{API}/keys", headers=by).status_code == 200
    assert caller.send("GET", f"{API}/audit?limit=100", headers=by).status_code == 200
    assert caller.send("POST", f"{where}/revoke", headers=by).status_code == 200
    for secret in (key, rotated):
        answer = caller.send("GET", f"{API}/jobs", headers={"X-API-Key": secret})
        assert answer.json()["code"] == "KEY_REVOKED"


def work(
    sweep: Sweep, caller: Caller, stack: WorkerServices, simulator: SimulatorProcess
) -> list[UUID]:
    """Jobs and runs that succeed, and that fail as the provider quotes its key and the prompt."""
    key = sweep.know("worker's key", stack.keys.create("grace@example.org", "Test"))
    by = {"X-API-Key": key}
    prompt = sweep.make("prompt", "Say " + ODD)
    item = sweep.make("item", "Embed " + ODD)

    def post(path: str, body: Any) -> Any:
        answer = caller.send("POST", API + path, json=body, headers=by, shows=("prompt",))
        assert answer.status_code == 202, answer.text
        return answer.json()

    def end(path: str) -> Any:
        shown: dict[str, Any] = {}

        def is_over() -> bool:
            answer = caller.send("GET", API + path, headers=by, shows=CONTENT)
            shown.update(answer.json())
            return shown["state"] in {"succeeded", "failed", "completed"}

        wait_until(is_over, f"the end of {path}")
        return shown

    def refuse(prefix: str = "") -> None:
        said = f"Incorrect API key provided: {os.environ['OPENAI_API_KEY']} for {prefix}."
        fault = {"kind": "status", "status": 401, "code": "invalid_api_key", "message": said}
        simulator.control(fault, {**fault, "code": None, "status": 500})

    for body in (
        {"prompt": {"is": prompt}},
        {"prompt": prompt, "max_tokens": prompt},
        {"prompt": prompt, "temperature": [prompt]},
        {"prompt": prompt, "unknown": prompt},
        {"messages": prompt},
        [prompt],
    ):
        answer = caller.send("POST", f"{API}/generations", json=body, headers=by)
        assert answer.status_code == 422, answer.text
    jobs = [post("/generations", {"prompt": prompt})["id"]]
    assert end(f"/jobs/{jobs[0]}")["state"] == "succeeded"
    refuse(prompt)
    jobs.append(post("/generations", {"prompt": f"{prompt} again"})["id"])
    failed = end(f"/jobs/{jobs[1]}")
    assert (failed["state"], failed["error_code"]) == ("failed", "PROVIDER_AUTHENTICATION")
    simulator.reset()
    simulator.control(
        {"kind": "status", "status": 500, "message": f"{os.environ['OPENAI_API_KEY']} {prompt}"},
        {"kind": "truncated"},
    )
    jobs.append(post("/generations", {"prompt": f"{prompt} once more"})["id"])
    end(f"/jobs/{jobs[2]}")
    simulator.reset()
    run_id = post("/runs/embeddings", {"items": [{"custom_id": "1", "text": item}]})["id"]
    assert end(f"/runs/{run_id}")["state"] == "completed"
    refuse(item)
    failed_id = post("/runs/generations", {"items": [{"custom_id": "1", "prompt": item}]})["id"]
    end(f"/runs/{failed_id}")
    for run_path in (f"/runs/{run_id}", f"/runs/{failed_id}"):
        for part in ("", "/results", "/failures"):
            caller.send("GET", API + run_path + part, headers=by, shows=CONTENT)
    caller.send("GET", f"{API}/usage/calls", headers=by, shows=CONTENT)
    caller.send("GET", f"{API}/usage", headers=by)
    return [UUID(job) for job in jobs]


def notify(sweep: Sweep, caller: Caller, stack: WorkerServices, mail: MailServer) -> list[UUID]:
    """Send mails while the server refuses its login and a mail, and quotes both."""
    text = mail.asked
    with stack.ledger.transaction() as unit:
        root = unit.users.create(email="root@example.org", role=Role.SUPER_ADMIN)
    key = stack.keys.create("root@example.org", "Test", scopes=list(Scope))
    by = {"X-API-Key": sweep.know("administrator's key", key)}
    right = {"user_id": str(root.id), "subject": "News", "message": text}

    def send(body: Any) -> Response:
        return caller.send("POST", f"{API}/send-notification", json=body, headers=by)

    for wrong in (
        {**right, "user_id": text},
        {**right, "subject": [text]},
        {**right, "message": ""},
        {**right, "subject": f"{text}\n"},
        {**right, "idempotency_key": [text]},
        {**right, "html": text},
        [text],
    ):
        assert send(wrong).status_code == 422
    sent = []
    for state in ("succeeded", "failed"):
        sent.append(UUID(send(right).json()["id"]))
        wait_until(lambda: stack.jobs.get(sent[-1]).state == state, f"a mail that has {state}")  # noqa: B023
    assert mail.logins >= 3
    assert len(mail.accepted) == 1
    assert caller.send("GET", f"{API}/notifications", headers=by, shows=CONTENT).is_success
    return sent


def commands(sweep: Sweep, environment: dict[str, str], tmp_path: Path) -> None:
    """Ask the command line for all that it shows, and let it change and refuse passwords."""
    password = tmp_path / "password"
    variables = {**os.environ, **environment}
    for text in (sweep.make("reset password", ODD), sweep.make("weak password", "{}")[:9]):
        password.write_text(text)
        for arguments in (
            ("users", "reset-password", "ada@example.org", "--password-file", str(password)),
            ("users", "create", "new@example.org", "--password-file", str(password)),
        ):
            ran = run([CLI, *arguments], variables)
            sweep.look("commands", ran.stdout + ran.stderr)
    for command in (*COMMANDS, ATTEMPTS):
        ran = run([CLI, *command], variables)
        assert ran.returncode in {0, 1}, ran.stderr
        assert ran.stdout
        but = CONTENT if command == ATTEMPTS else ()
        sweep.look("commands", ran.stdout + ran.stderr, but=but)
    wrong = sweep.make("wrong password of a server", ODD)
    for server in (
        {"REDIS_PASSWORD": wrong},
        {"DATABASE_URL": f"postgresql://ada:{quote(wrong, safe='')}@127.0.0.1:1/x"},
        {"CELERY_BROKER_URL": f"amqp://ada:{quote(wrong, safe='')}@127.0.0.1:1/x"},
        {"SMTP_URL": f"smtp://ada:{wrong}@localhost:1"},
        {"OPENAI_API_KEY": f"sk {wrong}"},
        {"FLOWER_BASIC_AUTH": wrong},
    ):
        # Where a server is only away, a process waits for it; `doctor` says so.
        is_away = server.keys() & {"DATABASE_URL", "CELERY_BROKER_URL"}
        program = [CLI, "doctor", "--json"] if is_away else ["-m", "promptstack.api.flower"]
        ran = run(program, {**variables, "FLOWER_PORT": "0", **server})
        assert ran.returncode == (1 if is_away else 2), server
        sweep.look("commands", ran.stdout + ran.stderr)
    made = run([CLI, "keys", "create", "--name", "from the command line"], variables)
    key = sweep.know("command line's key", made.stdout.strip())
    sweep.look("commands", made.stderr)
    for command in (("keys", "rotate", key[:11]), ("keys", "revoke", key)):
        ran = run([CLI, *command], variables)
        if command[1] == "rotate":
            sweep.know("its second secret", ran.stdout.split()[-1])
            sweep.look("commands", ran.stderr)
        else:
            sweep.look("commands", ran.stdout + ran.stderr)
