"""Converts Arrow times with nanoseconds, which Python can't hold."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

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
