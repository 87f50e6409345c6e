"""A running Flower, and all that it says."""

import json
import urllib.error
import urllib.request
from base64 import b64encode
from http.client import HTTPResponse
from typing import Any
from uuid import UUID

from promptstack.services.jobs.views import JobView
from tests.processes import Process, wait_until

TABLE = (
    "/tasks/datatable?draw=1&start=0&length=50"
    "&order[0][column]=0&order[0][dir]=asc&columns[0][data]=name"
)
"""What the page of all tasks asks for."""


class FlowerClient:
    """Asks a running Flower, and keeps all that it ever answered."""

    def __init__(self, process: Process, *, credentials: str | None = None) -> None:
        self.process = process
        self.answers: list[str] = []
        self._headers = {}
        if credentials:
            self._headers["Authorization"] = (
                f"Basic {b64encode(credentials.encode(errors='surrogateescape')).decode()}"
            )
        wait_until(lambda: self._line() or not process.is_running, f"Flower; see {process.log}")
        self.url = str(json.loads(self._line())["url"])

    def _line(self) -> str:
        lines = self.process.output().splitlines()
        return next((line for line in lines if line.startswith('{"url"')), "")

    def get(self, path: str) -> str:
        with self.open(path) as response:
            answer = response.read().decode()
        self.answers.append(answer)
        return answer

    def open(
        self, path: str, *, data: bytes | None = None, host: str | None = None
    ) -> HTTPResponse:
        headers = self._headers | ({} if host is None else {"Host": host})
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        response: HTTPResponse = urllib.request.urlopen(request, timeout=10)
        return response

    def status(self, path: str, *, data: bytes | None = None, host: str | None = None) -> int:
        try:
            with self.open(path, data=data, host=host) as response:
                return response.status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def task(self, job: JobView) -> dict[str, Any]:
        """What Flower's API says of a job; empty while it knows nothing."""
        try:
            task: dict[str, Any] = json.loads(self.get(f"/api/task/info/{job.id}"))
        except urllib.error.HTTPError as error:
            error.close()
            return {}
        return task

    def shows(self, job: JobView, state: str) -> dict[str, Any]:
        """Wait until Flower shows a job in this state; everything that it says of it then."""
        task: dict[str, Any] = {}

        def is_shown() -> bool:
            task.update(self.task(job))
            return bool(task.get("state") == state)

        wait_until(is_shown, f"{state} in Flower", 20)
        return task

    def read_everything(self, *jobs: UUID) -> str:
        """Every page, and every answer of its API; with all that it has answered before."""
        pages = ["/", "/?json=1", "/tasks", "/broker", "/metrics", "/api/tasks", "/api/task/types"]
        pages += [TABLE, "/api/workers?refresh=1"]
        pages += [f"/worker/{name}" for name in json.loads(self.get("/api/workers?status=1"))]
        pages += [f"/task/{job}" for job in jobs] + [f"/api/task/result/{job}" for job in jobs]
        for page in pages:
            self.get(page)
        return "".join(self.answers)
