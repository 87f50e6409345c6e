"""Folders become documents, documents become chunks, and templates take only names."""

import gzip
import os
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from pydantic import JsonValue

from promptstack.services.documents.chunking import Chunker
from promptstack.services.errors import InvalidInput
from promptstack.services.sources.inputs import BadInput, Fault, Format, Input, Reading, read_inputs
from promptstack.services.sources.reading import BadRecord
from promptstack.services.sources.templates import Template

names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6)
literals = st.text(max_size=8)
pieces = st.lists(st.tuples(literals, names), max_size=5)
LONG = "One sentence stands here. Another one follows it. " * 20


def read(source: Any, **reading: Any) -> list[Input | BadInput]:
    return list(read_inputs(source, Reading(**reading)))


def refused(source: Any, **reading: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        read(source, **reading)
    return str(caught.value)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


@effort(deadline=None)
@given(pieces, literals, st.data())
def test_a_template_is_filled_in_as_str_format_would(
    parts: list[tuple[str, str]], end: str, data: st.DataObject
) -> None:
    written = "".join(f"{escaped(text)}{{{name}}}" for text, name in parts) + escaped(end)
    fields = {name: data.draw(st.text(max_size=5)) for _, name in parts}
    template = Template(written)
    expected = "".join(text + fields[name] for text, name in parts) + end
    assert template.render(fields) == expected
    assert template.names == list(dict.fromkeys(name for _, name in parts))


@effort(deadline=None)
@given(st.text("{}ab.![]: ", max_size=12))
def test_what_is_no_template_is_refused_and_the_rest_is_filled_in(text: str) -> None:
    try:
        template = Template(text)
    except InvalidInput:
        return
    filled = template.render(dict.fromkeys(template.names, "x"))
    # str.format agrees wherever it takes the template, too.
    assert filled == text.format(**dict.fromkeys(template.names, "x"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{text", "a single '{' at character 1; write '{{'"),
        ("ab}", "a single '}' at character 3; write '}}'"),
        ("{}", "without a name"),
        ("{text.__class__}", "only names of fields"),
        ("{text[0]}", "only names of fields"),
        ("{text!r}", "only names of fields"),
        ("{text:>9}", "only names of fields"),
        ("{a{b}}", "a single '{'"),
        ("{{{text}", None),
        ("{{text}}}", "a single '}'"),
    ],
)
def test_a_malformed_template_is_refused_before_anything_is_read(
    template: str, reason: str | None
) -> None:
    if reason is None:
        assert Template(template).render({"text": "x"}) == "{x"
        return
    for tokens in (None, 50):
        with pytest.raises(InvalidInput) as caught:
            read_inputs(
                iter(lambda: pytest.fail("read"), None),
                Reading(template=template, chunk_tokens=tokens),
            )
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.5, "1.5"), (True, "true"), ([1, "a"], '[1,"a"]'), ({"k": None}, '{"k":null}')],
)
def test_other_values_are_filled_in_as_json(value: Any, text: str) -> None:
    assert Template("{x}").render({"x": value}) == text


def test_a_field_that_is_missing_makes_the_record_bad() -> None:
    items = [{"id": "a", "text": "t"}, {"id": "b", "title": "T"}, {"id": "c", "title": None}]
    bad, fine, null = read(items, template="{title}!")
    assert fine == Input(2, "b", "T!", None, {"title": "T"})
    for item, custom_id in ((bad, "a"), (null, "c")):
        assert isinstance(item, BadInput)
        assert (item.custom_id, item.code) == (custom_id, Fault.MISSING_FIELD)
        assert "'title' is not there" in item.reason


def test_the_filled_in_text_is_checked() -> None:
    codes = [
        item.code if isinstance(item, BadInput) else item.text
        for item in read(
            [{"a": ""}, {"a": "x" * 50}, {"a": "\x00"}, {"a": "x"}], template="{a}", max_bytes=10
        )
    ]
    assert codes == [Fault.EMPTY_TEXT, Fault.TOO_LONG, Fault.NOT_STORABLE, "x"]
    with pytest.raises(BadRecord):
        Template("{a}").render({"a": object()})


@effort(deadline=None)
@given(st.lists(st.text("ab .\n#é", max_size=300), max_size=4), st.integers(16, 80))
def test_chunks_are_those_of_the_chunker(documents: list[str], size: int) -> None:
    written = [
        {"id": f"d{number}.md", "text": text, "n": number} for number, text in enumerate(documents)
    ]
    found = read(written, chunk_tokens=size)
    expected = [
        (f"d{number}.md#{at}", chunk.text, {"n": number, "source": f"d{number}.md", "start": start})
        for number, text in enumerate(documents)
        for at, chunk in enumerate(Chunker(size).cut(text, f"d{number}.md"), 1)
        for start in (chunk.start,)
    ]
    assert [
        (item.custom_id, item.text, item.metadata) for item in found if isinstance(item, Input)
    ] == expected
    assert [item.position for item in found] == list(range(1, len(found) + 1))
    empty = [item.custom_id for item in found if isinstance(item, BadInput)]
    assert empty == [f"d{at}.md" for at, text in enumerate(documents) if not text.strip()]


def test_a_template_is_filled_in_with_each_chunk() -> None:
    record = {"id": "d", "prompt": LONG, "title": "T", "n": 1}
    found = read([record], chunk_tokens=30, template="{id} {title}: {prompt}", columns=("n", "x"))
    chunks = [chunk.text for chunk in Chunker(30).cut(LONG, "d")]
    assert len(chunks) > 5
    assert [item.text for item in found if isinstance(item, Input)] == [
        f"d T: {chunk}" for chunk in chunks
    ]
    first = found[0]
    assert isinstance(first, Input)
    assert first.metadata == {"n": 1, "source": "d", "start": 0}


def test_what_is_bad_stays_bad_between_chunks() -> None:
    turns = [{"role": "user", "content": "Hi"}]
    items = ["one", " ", {"messages": turns}, {"text": "two", "title": "T"}]
    found = read(items, chunk_tokens=50, template="{title}: {text}")
    assert [
        (item.position, item.custom_id, item.code if isinstance(item, BadInput) else item.text)
        for item in found
    ] == [
        (1, "1#1", Fault.MISSING_FIELD),
        (2, "2", Fault.EMPTY_TEXT),
        (3, "3", Fault.WRONG_TYPE),
        (4, "4#1", "T: two"),
    ]


def test_tables_keep_what_the_template_of_chunks_needs(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"text": ["t"], "title": ["T"], "n": [1], "other": ["o"]}), path)
    reading = {"chunk_tokens": 50, "template": "{title} {text}", "columns": ("n",)}
    metadata: dict[str, JsonValue] = {"n": 1, "source": "1", "start": 0}
    assert read(path, **reading) == [Input(1, "1#1", "T t", None, metadata)]
    (tmp_path / "in.csv").write_text("title,text,n,other\nT,t,1,o\n")
    assert read(tmp_path / "in.csv", **reading) == [
        Input(1, "2#1", "T t", None, {**metadata, "n": "1", "source": "2"})
    ]
    assert "no column 'text'" in refused(
        _csv(tmp_path, "title\nT\n"), chunk_tokens=50, template="{title}"
    )


def _csv(folder: Path, text: str) -> Path:
    path = folder / "other.csv"
    path.write_text(text)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {
        "b.txt": b"\xef\xbb\xbftext b\r\n",
        "a/z.md": b"# Z",
        "a/deep/y.rst": b"text y",
        "a.markdown": gzip.compress(b"packed"),
        "code.py": b"no text",
        ".hidden/x.txt": b"hidden",
        "a/.x.txt": b"hidden",
    }
    for name, content in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "in"


def test_a_folders_text_files_are_documents_in_order(folder: Path) -> None:
    found = read(folder)
    assert found == [
        Input(1, "a/deep/y.rst", "text y", None, {"source": "a/deep/y.rst"}),
        Input(2, "a/z.md", "# Z", None, {"source": "a/z.md"}),
        Input(3, "a.markdown", "packed", None, {"source": "a.markdown"}),
        Input(4, "b.txt", "text b\r\n", None, {"source": "b.txt"}),
    ]
    assert read(str(folder), format=Format.FOLDER) == found


def test_a_folders_chunks_have_running_numbers(folder: Path) -> None:
    (folder / "a/z.md").write_text("# Z\n\n" + LONG)
    found = read(folder, chunk_tokens=30)
    chunks = Chunker(30).cut("# Z\n\n" + LONG, "a/z.md")
    assert len(found) == len(chunks) + 3
    assert found[1 : len(chunks) + 1] == [
        Input(at, f"a/z.md#{at - 1}", chunk.text, None, {"source": "a/z.md", "start": chunk.start})
        for at, chunk in enumerate(chunks, 2)
    ]
    assert found[-1] == Input(
        len(found), "b.txt#1", "text b", None, {"source": "b.txt", "start": 0}
    )


def test_a_bad_file_of_a_folder_hurts_no_other(folder: Path) -> None:
    (folder / "b0.txt").write_bytes(b"\xff")
    (folder / "b1.txt").write_bytes(b"a\x00")
    (folder / "b2.txt").write_bytes(b" \n")
    (folder / "b3.txt").write_bytes(b"x" * 101)
    (folder / "b4.txt").write_bytes("text".encode("utf-16"))
    (folder / "b5.txt").write_bytes(gzip.compress(b"text")[:-9])
    (folder / os.fsdecode(b"b6\xff.txt")).write_bytes(b"name")
    (folder / os.fsdecode(b"b7\xff.txt")).write_bytes(b"\xff")
    (folder / "b8\n.txt").write_bytes(b"\xff")
    found = read(folder, max_bytes=100)
    assert [
        (item.custom_id, item.code if isinstance(item, BadInput) else item.text) for item in found
    ][3:] == [
        ("b.txt", "text b\r\n"),
        ("b0.txt", Fault.BAD_ENCODING),
        ("b1.txt", Fault.NOT_STORABLE),
        ("b2.txt", Fault.EMPTY_TEXT),
        ("b3.txt", Fault.TOO_LONG),
        ("b4.txt", "text"),
        ("b5.txt", Fault.UNREADABLE),
        ("b6\\udcff.txt", Fault.NOT_STORABLE),
        ("b7\\udcff.txt", Fault.NOT_STORABLE),
        ("b8\n.txt", Fault.NOT_STORABLE),
    ]
    assert isinstance(found[-2], BadInput)
    assert found[-2].reason.endswith("can't be. It is not UTF-8. Rename it.")
    for item in found:
        str(item).encode()  # whatever a file is called, what is said of it can be stored


def test_a_folder_whose_name_is_not_utf_8_is_read_or_refused_in_words(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"odd\xff")
    odd.mkdir()
    refused(odd).encode()
    (odd / "a.txt").write_text("text")
    (odd / "b.txt").write_bytes(gzip.compress(b"text")[:-9])
    fine, bad = read(odd)
    assert (fine.custom_id, bad.custom_id) == ("a.txt", "b.txt")
    assert isinstance(bad, BadInput)
    assert "odd\\udcff/b.txt can't be read on" in bad.reason
    refused(odd / "c.jsonl").encode()
    refused(odd / "a.txt", format=Format.PARQUET).encode()


def test_other_names_of_the_fields_hold_for_folders_too(folder: Path) -> None:
    found = read(folder, text_column="body", id_column="path", template="{path}: {body}")
    assert found[1] == Input(2, "a/z.md", "a/z.md: # Z", None, {"source": "a/z.md"})


def test_one_markdown_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("one\ntwo")
    assert read(path) == [Input(1, str(path), "one\ntwo", None, {"source": str(path)})]
    assert read(path, chunk_tokens=50)[0].custom_id == f"{path}#1"


def test_a_text_file_is_lines_unless_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo")
    assert [item.custom_id for item in read(path)] == ["1", "2"]
    assert [item.custom_id for item in read(path, chunk_tokens=50)] == [f"{path}#1"]
    lines = read(path, chunk_tokens=50, format=Format.LINES)
    assert [item.custom_id for item in lines] == ["1#1", "2#1"]


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    assert "holds no text files (.markdown, .md" in refused(tmp_path)
    assert "is a folder; name a file in it" in refused(tmp_path, format=Format.JSONL)
    assert "is no folder and no file" in refused("-", format=Format.FOLDER)


def test_an_unreadable_folder_and_file_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in.jsonl").write_bytes(orjson.dumps({"text": "a"}))

    def refuse(*_arguments: Any, **_options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("promptstack.services.sources.folders.os.scandir", refuse)
    assert refused(tmp_path) == f"{tmp_path} can't be read: Permission denied."
    monkeypatch.setattr(Path, "open", refuse)
    path = tmp_path / "in.jsonl"
    assert refused(path) == f"{path} can't be read: Permission denied."
