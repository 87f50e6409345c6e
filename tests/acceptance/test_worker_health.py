"""What a container's health check asks a worker."""

from collections.abc import Callable
from pathlib import Path

from tests.processes import Process


def test_health_tells_whether_a_worker_is_alive_here(
    environment: dict[str, str], start_worker: Callable[..., Process], tmp_path: Path
) -> None:
    def ask() -> int:
        with Process(
            ["-m", "promptstack.worker.health"], environment, tmp_path / "health.log"
        ) as health:
            return health.wait()

    assert ask() == 1
    worker = start_worker()
    assert ask() == 0
    worker.stop()
    assert ask() == 1
    environment["DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/nothing"
    # A worker must not be ended for a database that is away.
    assert ask() == 0
    environment["DATABASE_URL"] = "mysql://nowhere"
    assert ask() == 1
    assert len((tmp_path / "health.log").read_text().splitlines()) == 2
