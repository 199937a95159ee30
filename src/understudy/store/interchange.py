"""Parquet in and out: the form for other programs. It is not the working form: random reading is 10 to 20 times slower.

Columns: `id` string, `view` int32, and one list column of fixed size a tensor of the schema (an ensemble's rows are flattened
member by member). A quarantined (id, view) is a row of nulls. The store's header is in the file's metadata under "understudy".
Of sequences, a row is one of them: what is kept once for it is a column of numbers, and the lists hold all its positions one after the
other. The output layer of a store of states goes with it as a second file, `<name>.head.safetensors`.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from understudy import atomic
from understudy.errors import DataError, four_parts
from understudy.store import head as heads
from understudy.store.reader import Reader
from understudy.store.schema import Header, choose, fields, per_sequence
from understudy.store.writer import Writer

_METADATA = b"understudy"
_CHUNK = 8192
_SEQUENCES = 64


def export_parquet(folder: str | Path, path: str | Path) -> int:
    """Write the whole store as one Parquet file (zstd), whole or not at all; returns how many ids, in all views, quarantined ones included.

    Raises DataError for a store that Reader refuses, or an id that is not valid UTF-8.
    """
    reader = Reader(folder)
    layout = fields(reader.header)
    once = per_sequence(reader.header)
    columns: dict[str, pa.DataType] = {name: pa.from_numpy_dtype(np.dtype(item.dtype)) for name, item in once.items()}
    for name, item in layout.items():
        columns[name] = pa.list_(pa.from_numpy_dtype(np.dtype(item.dtype)), -1 if once else math.prod(item.shape))
    chunk_size = _SEQUENCES if once else _CHUNK
    schema = pa.schema([("id", pa.string()), ("view", pa.int32()), *columns.items()], metadata={_METADATA: reader.header.to_bytes()})

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as file:
            for view in reader.views:
                ids = reader.ids(view)
                for start in range(0, len(ids), chunk_size):
                    chunk = ids[start : start + chunk_size]
                    ordinals = reader.ordinals(chunk, view)
                    runs, rows = reader.runs(ordinals), reader.take(ordinals)
                    arrays = [pa.array(runs[name].numpy()) for name in once]
                    for name, item in layout.items():
                        values = pa.array(rows[name].flatten().numpy())
                        if once:
                            ends = runs["count"].cumsum(0, dtype=torch.int32) * math.prod(item.shape)
                            arrays.append(pa.ListArray.from_arrays(pa.array([0, *ends.tolist()], pa.int32()), values, type=columns[name]))
                        else:
                            arrays.append(pa.FixedSizeListArray.from_arrays(values, type=columns[name]))
                    keys = [pa.array(chunk), pa.array([view] * len(chunk), pa.int32())]
                    file.write_table(pa.Table.from_arrays([*keys, *arrays], schema=schema))
            lost = sorted(reader.quarantined)
            if lost:
                nulls = [pa.nulls(len(lost), kind) for kind in columns.values()]
                file.write_table(pa.Table.from_arrays(
                    [pa.array([name for name, _ in lost]), pa.array([view for _, view in lost], pa.int32()), *nulls], schema=schema))

    try:
        if reader.header.head:
            atomic.write_bytes(_beside(path), (Path(folder) / heads.FILE).read_bytes())
        atomic.write_with(path, write)
    except UnicodeEncodeError as error:
        raise DataError(four_parts(
            "an id can't be written to Parquet", got=repr(error.object), expected="valid UTF-8",
            otherwise="The row would come back under another id", do="Rename the file that the id was made from")) from None
    return len(reader) + len(reader.quarantined)


def import_parquet(path: str | Path, folder: str | Path, header: Header | None = None) -> int:
    """Add the rows of a Parquet file to the store in `folder` (made if needed); returns how many were added.

    Rows that the store has already are skipped, so a broken import goes on where it stopped. Rows with nulls, NaN or infinities are
    quarantined, and refused past 0.1 % like a teacher's.

    Args:
        header: what the rows are; None takes the one in the file's metadata, as `export_parquet` writes it.

    Raises:
        DataError: not Parquet, no header, other columns than the header's, or a store of another header; of states, no output layer or
            another one beside the file.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(four_parts(
            f"{path} can't be read", got=error, expected="a Parquet file", otherwise="There would be nothing to import",
            do="Give a file made by `understudy store export`")) from None
    with file:
        header = header or _header_of(file, path)
        layout = fields(header)
        once = per_sequence(header)
        wanted = ["id", "view", *once, *layout]
        lacking = [name for name in wanted if name not in file.schema_arrow.names]
        if lacking:
            raise DataError(four_parts(
                f"{path} lacks columns", got=", ".join(file.schema_arrow.names), expected=", ".join(wanted),
                otherwise="Rows would be incomplete", do=f"Add {', '.join(lacking)}"))
        added = 0
        with Writer(folder, header, planned=file.metadata.num_rows, head=_head_of(path, header)) as writer:
            for batch in file.iter_batches(_SEQUENCES if once else _CHUNK, columns=wanted):
                arrays = _runs(batch, header, path) if once else {
                    name: _column(batch.column(name), item.dtype, item.shape, f"{path}: column {name}") for name, item in layout.items()}
                ids, views = np.array(batch.column("id").to_pylist(), dtype=object), batch.column("view").to_numpy(zero_copy_only=False)
                for view in np.unique(views).tolist():
                    missing = set(writer.missing(ids[views == view], view))
                    rows = np.array([here == view and name in missing for name, here in zip(ids, views, strict=True)], dtype=bool)
                    if rows.any():
                        writer.append(ids[rows].tolist(), view, choose(arrays, header, rows))
                        added += int(rows.sum())
    return added


def _beside(path: str | Path) -> Path:
    """Where the output layer of exported states lies."""
    return Path(f"{path}.{heads.FILE}")


def _head_of(path: str | Path, header: Header) -> bytes | None:
    if not header.head:
        return None
    try:
        return _beside(path).read_bytes()
    except OSError as error:
        raise DataError(four_parts(
            f"{_beside(path)} can't be read", got=error.strerror, expected="the output layer that was exported with the states",
            otherwise="Nobody could make answers of the states", do="Put it beside the Parquet file")) from None


def _header_of(file: pq.ParquetFile, path: str | Path) -> Header:
    found = (file.schema_arrow.metadata or {}).get(_METADATA)
    if found is None:
        raise DataError(four_parts(
            f"{path} does not say what its rows are", got="no metadata", expected='a store\'s header under "understudy"',
            otherwise="Rows of an unknown teacher would be trusted",
            do="Give the header from Python: understudy.store.interchange.import_parquet(path, folder, header)"))
    return Header.from_bytes(found, str(path))


def _runs(batch: pa.RecordBatch, header: Header, path: str | Path) -> dict[str, np.ndarray]:
    """The rows of a batch of sequences; one of nulls becomes a single position that is not finite, which the writer quarantines."""
    counts = batch.column("count")
    valid = np.asarray(counts.is_valid())
    count = np.asarray(counts.fill_null(1)).astype(np.int64)
    where = np.repeat(valid, np.maximum(count, 0))
    arrays = {}
    for name, item in per_sequence(header).items():
        arrays[name] = np.asarray(batch.column(name).fill_null(1 if name == "count" else 0)).astype(item.dtype)
    for name, item in fields(header).items():
        column, width, text = batch.column(name), math.prod(item.shape), f"{path}: column {name}"
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise _unfit(text, column.type, item.dtype, item.shape)
        lengths = np.asarray(pc.list_value_length(column).fill_null(-1))
        if (lengths != np.where(valid, count * width, -1)).any():
            raise _unfit(text, "lists of other lengths than count says", item.dtype, item.shape)
        filled = np.full((len(where), *item.shape), np.nan if item.dtype.startswith("float") else 0, dtype=item.dtype)
        filled[where] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, *item.shape)
        arrays[name] = filled
    return arrays


def _column(column: pa.Array, dtype: str, shape: tuple[int, ...], where: str) -> np.ndarray:
    """(n, *shape) of the dtype; a null row becomes NaN (0 for integers)."""
    width = math.prod(shape)
    kind = column.type
    if not (pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        if width != 1:
            raise _unfit(where, kind, dtype, shape)
        return np.asarray(column.to_numpy(zero_copy_only=False), dtype=dtype).reshape(-1, *shape)
    valid = np.asarray(column.is_valid())
    lengths = np.asarray(pc.list_value_length(column).fill_null(width))
    values = column.flatten().to_numpy(zero_copy_only=False)
    if (lengths != width).any() or len(values) != valid.sum() * width:
        raise _unfit(where, kind, dtype, shape)
    filled = np.full((len(column), width), np.nan if dtype.startswith("float") else 0, dtype=dtype)
    filled[valid] = values.reshape(-1, width)
    return filled.reshape(-1, *shape)


def _unfit(where: str, got: object, dtype: str, shape: tuple[int, ...]) -> DataError:
    return DataError(four_parts(
        f"{where} does not fit the header", got=got, expected=f"lists of {math.prod(shape)} {dtype}",
        otherwise="Classes would be mixed up", do="Write lists of that length, or give the header that fits"))
