"""Records from Parquet, a batch of rows at a time."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from services.errors import InvalidInput
from services.sources.arrow_times import with_python_times
from services.sources.columns import wanted_columns
from services.sources.opening import Origin, byte_blocks
from services.sources.plain import as_json
from services.sources.reading import BadInput, BadRecord, Fault, Input, Reading
from services.sources.records import RecordCheck

BATCH_BYTES = 4_194_304
MAX_BATCH_ROWS = 4_096
BUFFER_BYTES = 1_048_576
MAGIC = b"PAR1"


def read_parquet(
    origin: Origin, check: RecordCheck, reading: Reading
) -> Iterator[Input | BadInput]:
    """Read the columns that are wanted."""
    with _opened(origin) as file:
        columns = wanted_columns(origin.name, file.schema_arrow.names, reading)
        done = 0
        for batch in _batches(origin, file, columns):
            for position, row in enumerate(_rows(batch), done + 1):
                try:
                    yield check(position, _record(row))
                except BadRecord as bad:
                    yield BadInput(position, None, bad.fault, str(bad))
            done += batch.num_rows


def _batches(origin: Origin, file: Any, columns: list[str]) -> Iterator[Any]:
    done = 0
    try:
        for batch in file.iter_batches(
            _batch_rows(file.metadata), columns=columns, use_threads=False
        ):
            yield batch
            done += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise InvalidInput(
            f"{origin.name} can't be read on after row {done:,}: its data is damaged."
        ) from error


def _batch_rows(metadata: Any) -> int:
    """How many rows are read at once: few where they are long."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    # The sizes of single rows are not known: the average of the group with the longest ones.
    averages = (group.total_byte_size / max(group.num_rows, 1) for group in groups)
    longest: float = max(averages, default=0.0)
    return max(1, min(MAX_BATCH_ROWS, int(BATCH_BYTES / max(longest, 1.0))))


def _rows(batch: Any) -> Iterator[dict[str, Any] | BadRecord]:
    """Yield the rows as Python has them. Where that fails, one by one, to know which is bad."""
    batch = with_python_times(batch)
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
    return {name: as_json(value) for name, value in row.items()}


@contextmanager
def _opened(origin: Origin) -> Iterator[Any]:
    with ExitStack() as stack:
        where: Any = origin.path
        if where is None or not _is_plain(origin):
            where = stack.enter_context(_copied(origin))
        try:
            file = pq.ParquetFile(where, buffer_size=BUFFER_BYTES, pre_buffer=False)
        except (OSError, pa.ArrowException) as error:
            raise InvalidInput(
                f"{origin.name} is not a whole Parquet file; write it again."
            ) from error
        yield stack.enter_context(file)


@contextmanager
def _copied(origin: Origin) -> Iterator[BinaryIO]:
    """Put a stream, or what is compressed as a whole, into a file: Parquet is read from its end."""
    with tempfile.TemporaryFile() as copy:
        for block in byte_blocks(origin):
            copy.write(block)
        copy.seek(0)
        yield copy


def _is_plain(origin: Origin) -> bool:
    with origin.opened() as file:
        return file.read(len(MAGIC)) == MAGIC
