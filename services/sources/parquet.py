"""Reads records from Parquet, a batch of rows at a time."""

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from promptstack.services.errors import InvalidInput
from promptstack.services.sources.columns import wanted_columns
from promptstack.services.sources.jsonl import SLACK_BYTES
from promptstack.services.sources.opening import Origin, byte_blocks
from promptstack.services.sources.parquet_pages import INDEX_WIDTH, BadPages, Leaf, read_leaf
from promptstack.services.sources.python_records import as_fields
from promptstack.services.sources.reading import BadInput, BadRecord, Fault, Input, Reading
from promptstack.services.sources.records import RecordCheck
from promptstack.services.sources.tables import DOUBLED

COARSER = {pa.time64("ns"): pa.time64("us"), pa.duration("ns"): pa.duration("us")}
LISTS: dict[Any, Callable[[Any, Any], Any]] = {
    pa.ListType: lambda _, inner: pa.list_(inner),
    pa.LargeListType: lambda _, inner: pa.large_list(inner),
    pa.FixedSizeListType: lambda kind, inner: pa.list_(inner, kind.list_size),
}


def with_python_times(batch: Any) -> Any:
    """Return a batch with times in microseconds; finer digits are cut off."""
    types = [_coarser(field.type) for field in batch.schema]
    if types == batch.schema.types:
        return batch
    columns = [
        column if kind == column.type else column.cast(kind, safe=False)
        for column, kind in zip(batch.columns, types, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, batch.schema.names)


def _coarser(kind: Any) -> Any:
    if isinstance(kind, pa.StructType):
        return pa.struct([(field.name, _coarser(field.type)) for field in kind])
    if isinstance(kind, pa.MapType):
        return pa.map_(_coarser(kind.key_type), _coarser(kind.item_type))
    for of_lists, whole in LISTS.items():
        if isinstance(kind, of_lists):
            return whole(kind, _coarser(kind.value_type))
    return COARSER.get(kind, kind) if not isinstance(kind, pa.TimestampType) else _stamp(kind)


def _stamp(kind: Any) -> Any:
    return pa.timestamp("us", kind.tz) if kind.unit == "ns" else kind


BATCH_BYTES = 4_194_304
MAX_BATCH_ROWS = 4_096
BUFFER_BYTES = 1_048_576
MAGIC = b"PAR1"
TAIL_BYTES = 8
"""The file ends with the length of its description and the magic word."""
DESCRIPTION_SHARE = 4
"""The description of a file takes about four times its length in memory."""
PAGES_SHARE = 2
"""At most this many of the largest parts are in memory at once."""
BOMB = 32
"""Values in lists may expand to this many times their bytes in the file."""


def read_parquet(
    origin: Origin, check: RecordCheck, reading: Reading
) -> Iterator[Input | BadInput]:
    """Read the wanted columns. Memory does not grow with what they expand to."""
    with _opened(origin, reading.bounds.part_bytes) as (where, file, plain):
        columns = wanted_columns(origin.name, file.schema_arrow.names, reading)
        longest = DOUBLED * reading.max_bytes + SLACK_BYTES
        done = 0
        for number in range(file.num_row_groups):
            try:
                rows = file.metadata.row_group(number).num_rows
                leaves = _leaves(plain, file, number, columns, reading.bounds.part_bytes)
                plan = _plan(origin, leaves, rows, reading.bounds.part_bytes)
                for batch in _batches(where, file, number, columns, plan):
                    for position, row in enumerate(_rows(batch, longest), done + 1):
                        try:
                            yield check(position, _record(row))
                        except BadRecord as bad:
                            yield BadInput(position, check.own_id(row), bad.fault, str(bad))
                    done += batch.num_rows
            except (OSError, pa.ArrowException, BadPages) as error:
                raise InvalidInput(
                    f"{origin.name} can't be read on after row {done:,}: its data is damaged."
                ) from error


@dataclass(frozen=True)
class Plan:
    """The plan to read a group of rows."""

    rows: int
    """Rows that are read at once."""
    as_dictionaries: list[str]
    """Text columns that stay packed until a row is needed."""


def _leaves(
    plain: BinaryIO, file: Any, number: int, columns: list[str], part_bytes: int
) -> list[Leaf]:
    """Return the sizes of the wanted columns in a group of rows."""
    group, schema = file.metadata.row_group(number), file.schema
    return [
        read_leaf(plain, group.column(place), schema.column(place), part_bytes)
        for place in range(group.num_columns)
        if _is_within(schema.column(place).path, columns)
    ]


def _plan(origin: Origin, leaves: list[Leaf], rows: int, part_bytes: int) -> Plan:
    """Plan the reading. Raises `InvalidInput` if a part that must be read whole is too large."""
    row_bytes, packed = 0.0, []
    for leaf in leaves:
        if max(leaf.largest_page, leaf.dictionary) > part_bytes:
            raise _too_large(origin, leaf, "a page", part_bytes)
        if leaf.is_nested and leaf.values * INDEX_WIDTH > max(part_bytes, BOMB * leaf.packed):
            raise _too_large(origin, leaf, "lists that expand", part_bytes)
        if leaf.is_nested and leaf.expanded > max(part_bytes, BOMB * leaf.unpacked):
            packed.append(leaf.path)
            row_bytes += INDEX_WIDTH * leaf.values / max(rows, 1)
        else:
            row_bytes += leaf.value_bytes * max(1.0, leaf.values / max(rows, 1))
    held = sum(leaf.largest_page + leaf.dictionary for leaf in leaves)
    if held > PAGES_SHARE * part_bytes:
        largest = max(leaves, key=lambda leaf: leaf.largest_page + leaf.dictionary)
        raise _too_large(origin, largest, "pages", part_bytes)
    return Plan(max(1, min(MAX_BATCH_ROWS, int(BATCH_BYTES / max(row_bytes, 1.0)))), packed)


def _is_within(path: str, columns: list[str]) -> bool:
    return any(path == column or path.startswith(f"{column}.") for column in columns)


def _too_large(origin: Origin, leaf: Leaf, what: str, part_bytes: int) -> InvalidInput:
    return InvalidInput(
        f"{origin.name} has {what} in its column '{leaf.path}' for which {part_bytes:,} bytes of "
        "memory are not enough (MAX_SOURCE_PART_BYTES). Leave the column out (--columns), or write "
        "the file again with smaller pages."
    )


def _batches(where: Any, file: Any, number: int, columns: list[str], plan: Plan) -> Iterator[Any]:
    if plan.as_dictionaries:
        file = _reader(where, metadata=file.metadata, read_dictionary=plan.as_dictionaries)
    yield from file.iter_batches(plan.rows, row_groups=[number], columns=columns, use_threads=False)


def _reader(where: Any, **how: Any) -> Any:
    return pq.ParquetFile(where, buffer_size=BUFFER_BYTES, pre_buffer=False, **how)


def _rows(batch: Any, longest: int) -> Iterator[dict[str, Any] | BadRecord]:
    """Yield the rows as Python values; a row of more than `longest` bytes is a `BadRecord`."""
    size = sum(map(_most_bytes, batch.columns))
    if size > BATCH_BYTES and batch.num_rows > 1:
        middle = batch.num_rows // 2
        yield from _rows(batch.slice(0, middle), longest)
        yield from _rows(batch.slice(middle), longest)
    elif size > longest:
        yield BadRecord(Fault.TOO_LONG, f"The row has more than {longest:,} bytes.")
    else:
        yield from _python_rows(with_python_times(batch))


def _most_bytes(array: Any) -> int:
    """Return the most bytes that the values of an array can take, dictionaries unpacked."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        longest = pc.max(pc.binary_length(array.dictionary)).as_py() or 0
        return len(array) * (longest + INDEX_WIDTH)
    if pa.types.is_struct(kind):
        return sum(map(_most_bytes, array.flatten()))
    if pa.types.is_map(kind):
        first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
        parts = (part.slice(first, last - first) for part in (array.keys, array.items))
        return len(array) + sum(map(_most_bytes, parts))
    if pa.types.is_nested(kind):
        return len(array) + _most_bytes(array.flatten())
    return int(array.nbytes)


def _python_rows(batch: Any) -> Iterator[dict[str, Any] | BadRecord]:
    """Yield the rows. If a batch fails, convert one row at a time to find the bad one."""
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
        return
    except (ValueError, OverflowError, KeyError):
        pass
    for number in range(batch.num_rows):
        try:
            [row] = batch.slice(number, 1).to_pylist(maps_as_pydicts="strict")
        except UnicodeDecodeError:
            yield BadRecord(Fault.BAD_ENCODING, "The row has text that is not UTF-8.")
        except (ValueError, OverflowError, KeyError):
            yield BadRecord(Fault.WRONG_TYPE, "The row has a value that Python can't hold.")
        else:
            yield row


def _record(row: dict[str, Any] | BadRecord) -> dict[str, Any]:
    if isinstance(row, BadRecord):
        raise row
    return as_fields(row.items())


@contextmanager
def _opened(origin: Origin, part_bytes: int) -> Iterator[tuple[Any, Any, BinaryIO]]:
    """Open a file for pyarrow, and its plain bytes."""
    with ExitStack() as stack:
        where: Any = origin.path
        if not _is_plain(origin):
            where = plain = stack.enter_context(_copied(origin))
        elif where is None:
            where = plain = origin.stream or sys.stdin.buffer
        else:
            plain = stack.enter_context(origin.opened())
        if _description_bytes(plain) > part_bytes // DESCRIPTION_SHARE:
            raise InvalidInput(
                f"{origin.name} has a description of its groups of rows and columns that is longer "
                f"than {part_bytes // DESCRIPTION_SHARE:,} bytes (a quarter of "
                "MAX_SOURCE_PART_BYTES); write it again with larger groups of rows."
            )
        try:
            file = _reader(where)
        except (OSError, pa.ArrowException) as error:
            raise InvalidInput(
                f"{origin.name} is not a whole Parquet file; write it again."
            ) from error
        yield where, stack.enter_context(file), plain


def _description_bytes(plain: BinaryIO) -> int:
    size = plain.seek(0, io.SEEK_END)
    plain.seek(max(0, size - TAIL_BYTES))
    length = int.from_bytes(plain.read(TAIL_BYTES)[:4], "little")
    plain.seek(0)
    return min(length, size)  # one that is longer than the file is none


@contextmanager
def _copied(origin: Origin) -> Iterator[BinaryIO]:
    """Copy a stream or a compressed source into a file: Parquet is read from its end."""
    with tempfile.TemporaryFile() as copy:
        for block in byte_blocks(origin):
            copy.write(block)
        copy.seek(0)
        yield copy


def _is_plain(origin: Origin) -> bool:
    """Whether it is a file of Parquet as it is, which can be read from its end."""
    with origin.opened() as file:
        if origin.path is None and not (hasattr(file, "seekable") and file.seekable()):
            return False
        is_plain = file.read(len(MAGIC)) == MAGIC
        if origin.path is None:
            file.seek(0)
        return is_plain
