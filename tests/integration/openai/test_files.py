"""Files below `/openai/v1`, as OpenAI's own client and plain HTTP use them."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI
from sqlalchemy import event

from promptstack.config.settings import Settings
from promptstack.services.files.service import BLOCK_BYTES
from promptstack.tasks.worker_services import WorkerServices
from tests.http import live_server, serve

LINE = b'{"custom_id": "1", "method": "POST", "url": "/v1/embeddings", "body": {"input": "x"}}'
FORM = {"purpose": "batch"}


@pytest.fixture
def client(stack: WorkerServices) -> Iterator[TestClient]:
    with serve(stack) as opened:
        yield opened


def post(client: TestClient, content: bytes = LINE, **more: Any) -> dict[str, Any]:
    given = {"data": FORM, "files": {"file": ("in.jsonl", content)}, **more}
    response = client.post("/openai/v1/files", **given)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def refused(client: TestClient, status: int = 400, **given: Any) -> dict[str, Any]:
    response = client.post("/openai/v1/files", **given)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_the_sdk_keeps_files(stack: WorkerServices) -> None:
    key = stack.keys.create("ada@example.org", "Test")
    with (
        live_server(stack) as (_, url),
        OpenAI(base_url=f"{url}/openai/v1", api_key=key, timeout=60) as sdk,
    ):
        data = LINE * 40_000  # some blocks
        assert len(data) > 2 * BLOCK_BYTES
        file = sdk.files.create(file=("in.jsonl", data), purpose="batch")
        assert file.id.startswith("file-")
        assert (file.bytes, file.filename, file.purpose) == (len(data), "in.jsonl", "batch")
        assert sdk.files.wait_for_processing(file.id, max_wait_seconds=5).status == "processed"
        assert sdk.files.content(file.id).read() == data
        with sdk.files.with_streaming_response.content(file.id) as streamed:
            assert b"".join(streamed.iter_bytes()) == data
            assert 'filename="in.jsonl"' in streamed.headers["content-disposition"]
        bare = sdk.files.create(
            file=b"text",
            purpose="user_data",
            expires_after={"anchor": "created_at", "seconds": 3_600},
        )
        assert bare.expires_at == pytest.approx(bare.created_at + 3_600, abs=2)
        # Paging asks for pages of one, and ends.
        assert [one.id for one in sdk.files.list(limit=1)] == [bare.id, file.id]
        assert [one.id for one in sdk.files.list(order="asc", limit=1)] == [file.id, bare.id]
        assert [one.id for one in sdk.files.list(purpose="batch")] == [file.id]
        # A loop that deletes what it lists ends, too.
        for one in sdk.files.list(limit=1):
            assert sdk.files.delete(one.id).deleted
        assert sdk.files.list().data == []
        with pytest.raises(openai.NotFoundError):
            sdk.files.retrieve(file.id)


@pytest.mark.parametrize(
    "content",
    [LINE, LINE + b"\n", b"\xef\xbb\xbf" + LINE + b"\r\n", b"\x00\xff any bytes"],
    ids=["no newline", "newline", "bom and crlf", "no text"],
)
def test_a_file_is_kept_as_it_came(client: TestClient, content: bytes) -> None:
    made = post(client, content)
    response = client.get(f"/openai/v1/files/{made['id']}/content")
    assert response.content == content
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-length"] == str(len(content))


@pytest.mark.parametrize(
    ("head", "filename"),
    [
        ('name="file"', "file"),
        ('name="file"; filename=""', "file"),
        ('name="file"; filename="upload"', "upload"),
        ('name="file"; filename="ein Männchen.txt"', "ein Männchen.txt"),
    ],
    ids=["none", "empty", "without an ending", "with letters of others"],
)
@pytest.mark.parametrize("media_type", ["", "\r\nContent-Type: application/octet-stream"])
def test_a_file_needs_no_name_and_no_type(
    client: TestClient, head: str, filename: str, media_type: str
) -> None:
    large = LINE * 20_000  # more than a field may have
    body = (
        f"--B\r\nContent-Disposition: form-data; {head}{media_type}\r\n\r\n".encode()
        + large
        + b'\r\n--B\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--B--\r\n'
    )
    response = client.post(
        "/openai/v1/files",
        content=body,
        headers={"Content-Type": "multipart/form-data; boundary=B"},
    )
    assert response.status_code == 200, response.text
    assert (response.json()["filename"], response.json()["bytes"]) == (filename, len(large))


def test_fields_of_a_form_say_when_it_expires(client: TestClient) -> None:
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = post(client, data={**FORM, **fields})
    assert made["expires_at"] == pytest.approx(made["created_at"] + 3_600, abs=2)
    for wrong in (
        {"expires_after[anchor]": "last_active_at"},
        {"expires_after[seconds]": "soon"},
        {"expires_after[seconds]": "60"},
    ):
        error = refused(client, data={**FORM, **fields, **wrong}, files={"file": ("x", LINE)})
        assert error["param"].startswith("expires_after.")


def test_what_is_wrong_with_an_upload_is_said(client: TestClient) -> None:
    file = {"file": ("x", LINE)}
    error = refused(client, files=file)
    assert (error["param"], error["type"]) == ("purpose", "invalid_request_error")
    error = refused(client, data={"purpose": "fine-tune"}, files=file)
    assert error["param"] == "purpose"
    assert "Send batch, user_data" in error["message"]
    assert "empty" in refused(client, data=FORM, files={"file": ("x", b"")})["message"]
    assert "no whole file" in refused(client, data=FORM, files={"other": ("x", LINE)})["message"]
    assert "multipart/form-data" in refused(client, json={"purpose": "batch"})["message"]


def test_a_part_of_a_file_can_be_asked_for(client: TestClient) -> None:
    data = LINE * 20_000
    url = f"/openai/v1/files/{post(client, data)['id']}/content"
    first = client.get(url, headers={"Range": "bytes=10-1499999"})
    assert (first.status_code, first.content) == (206, data[10:1_500_000])
    assert first.headers["content-range"] == f"bytes 10-1499999/{len(data)}"
    assert client.get(url, headers={"Range": "bytes=-5"}).content == data[-5:]
    assert client.get(url, headers={"Range": f"bytes={len(data)}-"}).status_code == 416
    same = client.get(url, headers={"If-None-Match": first.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")


def test_an_empty_list_names_no_ids_and_no_null(client: TestClient) -> None:
    """OpenAI's description has strings there."""
    assert client.get("/openai/v1/files").json() == {
        "object": "list",
        "data": [],
        "first_id": "",
        "last_id": "",
        "has_more": False,
    }


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "order=up", "limit=x"])
def test_a_list_has_bounds(client: TestClient, query: str) -> None:
    response = client.get(f"/openai/v1/files?{query}")
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_list_asks_the_ledger_no_more_for_more_files(
    stack: WorkerServices, client: TestClient
) -> None:
    counts = []
    statements: list[str] = []
    event.listen(
        stack.ledger.engine,
        "before_cursor_execute",
        lambda _c, _cursor, statement, *_: statements.append(statement),
    )
    for files in (1, 5):
        for _ in range(files):
            post(client)
        statements.clear()
        assert len(client.get("/openai/v1/files").json()["data"]) >= files
        counts.append(len(statements))
    assert counts[0] == counts[1]


def test_the_same_key_makes_one_file(client: TestClient) -> None:
    headers = {"Idempotency-Key": "one"}
    first = post(client, headers=headers)
    assert post(client, headers=headers) == first
    for other in ({"files": {"file": ("in.jsonl", b"other")}}, {"data": {"purpose": "user_data"}}):
        given: dict[str, Any] = {"data": FORM, "files": {"file": ("in.jsonl", LINE)}, **other}
        response = client.post("/openai/v1/files", headers=headers, **given)
        assert response.status_code == 409
        assert response.headers["x-should-retry"] == "false"
    assert len(client.get("/openai/v1/files").json()["data"]) == 1


def test_administrators_see_their_own_files_here(stack: WorkerServices, client: TestClient) -> None:
    made = post(client)
    with serve(stack, "root@example.org", is_admin=True) as admin:
        assert admin.get("/openai/v1/files").json()["data"] == []
        for ask in (admin.get, admin.delete):
            assert ask(f"/openai/v1/files/{made['id']}").status_code == 404
        assert admin.get(f"/openai/v1/files/{made['id']}/content").status_code == 404


def test_a_larger_file_is_refused(settings: Settings) -> None:
    small = settings.model_copy(update={"max_upload_bytes": 1_000, "files_of_one_user": 1})
    with WorkerServices.open(small) as stack, serve(stack) as client:
        error = refused(client, 413, data=FORM, files={"file": ("x", b"x" * 1_001)})
        assert (error["code"], error["type"]) == ("content_too_large", "invalid_request_error")
        assert "MAX_UPLOAD_BYTES" in error["message"]
        post(client, b"x" * 1_000)
        error = refused(client, data=FORM, files={"file": ("x", BytesIO(b"x"))})
        assert "FILES_OF_ONE_USER" in error["message"]


def test_a_key_sees_how_many_requests_are_left(stack: WorkerServices) -> None:
    key = stack.keys.create("ada@example.org", "Test", requests_a_minute=3)
    with serve(stack) as client:
        left = []
        for _ in range(3):
            answer = client.get("/openai/v1/files", headers={"Authorization": f"Bearer {key}"})
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            left.append(answer.headers["x-ratelimit-remaining-requests"])
        assert left == ["2", "1", "0"]
        answer = client.get("/openai/v1/files", headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "rate_limit_exceeded"
        assert float(answer.headers["retry-after"]) > 0
