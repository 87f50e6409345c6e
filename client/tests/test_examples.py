"""The examples of the pages are run, one block of a page after the other."""

import os
import re
from pathlib import Path

import psycopg2
import pytest

CLIENT = Path(__file__).parents[1]
PAGES = [CLIENT / "README.md", CLIENT.parent / "docs" / "client.md"]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    host, database, role = os.environ["PROMPTSTACK_TEST_DATABASE"].split()
    monkeypatch.setenv("DATABASE_URL", f"postgresql+psycopg2://{role}@/{database}?host={host}")
    with psycopg2.connect(host=host, dbname=database, user=role) as connection:
        connection.cursor().execute("CREATE TABLE IF NOT EXISTS orders (id integer)")
    connection.close()
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)
    for kept in ("client", "engine"):
        getattr(names.get(kept), "dispose", getattr(names.get(kept), "close", str))()
    assert capsys.readouterr().out
