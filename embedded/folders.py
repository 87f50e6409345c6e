"""Where the servers keep their data and sockets, out of reach of the machine's other users."""

import hashlib
import os
import shutil
import stat
import tempfile
from pathlib import Path

from promptstack.config.errors import ConfigurationError
from promptstack.embedded.process import CALLER, Account

# Where root keeps what PostgreSQL's user could not reach elsewhere.
ROOT = Path("/var/lib/promptstack")

# Linux takes 107 bytes, macOS 103.
_LONGEST_SOCKET_PATH = 103


def digest(path: Path) -> str:
    """A short name that stands for a path."""
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:12]


def make_folder(path: Path, *, traversable: bool = False) -> None:
    """Make a folder of ours unless it is there; never change one that is."""
    try:
        path.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        if path.is_dir():
            return
        raise ConfigurationError(f"{path} is a file; a folder is needed there.") from error
    except OSError as error:
        raise ConfigurationError(f"The folder {path} can't be made: {error.strerror}.") from error
    if traversable:
        path.chmod(0o711)


def is_private(folder: Path, account: Account = CALLER) -> bool:
    """Whether this is a folder, and only its owner, the account, can enter it."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    owner = os.geteuid() if account.uid is None else account.uid
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    return private and found.st_uid == owner


def socket_folder(data: Path, account: Account = CALLER) -> Path:
    """The data folder itself, or a short private one where its path can't carry a socket."""
    if _takes_sockets(data):
        return data
    folder = _short_folder(data, account)
    if not _takes_sockets(folder):
        raise ConfigurationError(
            f"{folder.parent} is too long a path for sockets: set a shorter TMPDIR."
        )
    if account != CALLER:
        make_folder(ROOT, traversable=True)
    make_folder(folder)
    if account.uid is not None and account.gid is not None and is_private(folder):
        os.chown(folder, account.uid, account.gid)
    if not is_private(folder, account):
        raise ConfigurationError(
            f"{folder} must be yours alone, but somebody else owns it or may enter it: remove it, "
            "or set another TMPDIR."
        )
    return folder


def remove_sockets(data: Path, account: Account = CALLER) -> None:
    """Delete the short folder of stopped servers, if they have one."""
    folder = _short_folder(data, account)
    if is_private(folder, account):
        shutil.rmtree(folder)


def _takes_sockets(folder: Path) -> bool:
    """Whether every client can name a socket in this folder: libpq splits hosts at commas."""
    text = str(folder)
    length = len(os.fsencode(folder / ".s.PGSQL.5432"))
    return length <= _LONGEST_SOCKET_PATH and text.isprintable() and "," not in text


def _short_folder(data: Path, account: Account) -> Path:
    if account != CALLER:
        return ROOT / f"sockets-{digest(data)}"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(runtime if runtime and is_private(Path(runtime)) else tempfile.gettempdir())
    return parent / f"promptstack-{os.geteuid()}-{digest(data)}"
