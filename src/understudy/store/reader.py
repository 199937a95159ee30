"""Reading back: shards are mapped into memory, (id, view) is resolved to an ordinal once, rows are taken by ordinal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from understudy.errors import DataError, four_parts
from understudy.store import head as heads
from understudy.store import shards
from understudy.store.manifest import Manifest
from understudy.store.schema import PARTS_FOLDER, Header, fields, part_names, per_sequence, read_header, row_bytes
from understudy.store.shards import Shard


@dataclass(frozen=True, slots=True)
class Location:
    """Where the rows of one (id, view) lie: the shard is its sha256; `start` and `count` are rows in it."""

    part: str
    shard: str
    start: int
    count: int


RESIDENT_BYTES = 2 * 2**30


class Reader:
    """The union of a store's parts, as it stood when it was opened. Ids are numbered by ordinals that hold for this object only.

    Every shard's sha256 is compared when the store is opened (about a second a gigabyte), so that a flipped bit is refused before
    the first step and not found in a student; a program that opens the same store twice may skip it the second time.

    Args:
        folder: the store.
        expect: a header, or some of its fields (such as `{"teacher": ...}`), that the store must have been recorded under.
        check_hashes: False only where another Reader of this process has compared them.
        resident_bytes: a store of several shards is joined in memory where its rows fit in this (one shard is mapped and read at the
            speed of memory anyway). Above it a batch is gathered shard by shard: about 12 us more for each shard that it touches.

    Raises:
        DataError: no store, another teacher, data, transform or format, a damaged or missing shard or output layer; all by name.
    """

    def __init__(self, folder: str | Path, expect: Header | Mapping[str, Any] | None = None, *, check_hashes: bool = True,
                 resident_bytes: int = RESIDENT_BYTES) -> None:
        self.folder = Path(folder)
        self.header, digest = read_header(self.folder)
        self._places: list[tuple[str, Shard]] = []
        self._tensors: list[dict[str, Tensor]] = []
        self._ordinals: dict[int, dict[str, int]] = {}
        runs: list[dict[str, Tensor]] = []
        manifests = {part: Manifest(self.folder / PARTS_FOLDER / part) for part in part_names(self.folder)}
        for part, manifest in manifests.items():
            manifest.close()
            if manifest.header not in ("", digest):
                raise DataError(four_parts(
                    f'{self.folder}: header.json is not the one that part "{part}" was recorded under', got=f"sha256 {digest[:12]}",
                    expected=f"sha256 {manifest.header[:12]}", otherwise="Rows would be read as something that they are not",
                    do="Restore header.json from a copy, or record again"))
        if expect is not None:
            self.header.refuse_other(expect, f"the store {self.folder}")
        fault = heads.fault(self.folder, self.header) if check_hashes else None
        if fault:
            raise heads.broken(self.folder, self.header, fault)
        self.quarantined = frozenset(key for manifest in manifests.values() for key in manifest.quarantined)
        """The (id, view) whose answers were not finite: there are no rows for them."""
        begin = ordinals = 0
        starts = []
        for part, manifest in manifests.items():
            for shard in manifest.shards:
                ids, views, run = self._open(part, shard, check_hashes)
                for ordinal, (name, view) in enumerate(zip(ids, views, strict=True), ordinals):
                    # Two parts may hold the same answer; the first one is read.
                    self._ordinals.setdefault(view, {}).setdefault(name, ordinal)
                runs.append(run)
                starts.append(begin)
                begin += shard.rows
                ordinals += len(ids)
        self._starts = torch.tensor(starts, dtype=torch.int64)
        self._runs = {name: torch.cat([run[name] for run in runs]) for name in (per_sequence(self.header) if runs else ())}
        self._ends = self._runs["count"].cumsum(0, dtype=torch.int64) if self._runs else None
        if len(self._tensors) > 1 and begin * row_bytes(self.header) <= resident_bytes:
            self._tensors = [{name: torch.cat([tensors[name] for tensors in self._tensors]) for name in fields(self.header)}]
        self._only = self._tensors[0] if len(self._tensors) == 1 else None

    def __len__(self) -> int:
        """How many (id, view) have rows."""
        return sum(len(found) for found in self._ordinals.values())

    @property
    def views(self) -> tuple[int, ...]:
        """The views that have rows."""
        return tuple(sorted(self._ordinals))

    @property
    def nbytes(self) -> int:
        """Bytes of all rows as they are stored."""
        return self.rows * row_bytes(self.header)

    @cached_property
    def head(self) -> dict[str, Tensor]:
        """The output layer of a store of states: weight (V, D) and, where it has one, bias (V,); empty for any other store."""
        return heads.read(self.folder, self.header, "pt") if self.header.head else {}

    @property
    def rows(self) -> int:
        """How many rows there are: one for an (id, view), or of sequences one for each of their positions."""
        if not self._runs:
            return len(self)
        return int(sum(self._runs["count"][list(found.values())].sum() for found in self._ordinals.values()))

    def ids(self, view: int = 0) -> list[str]:
        """The ids that have a row for this view, in the order of recording."""
        return list(self._ordinals.get(view, {}))

    def find(self, ids: Iterable[str], view: int) -> Tensor:
        """(n,) int64 ordinals, -1 where there is no row."""
        found = self._ordinals.get(view, {})
        return torch.tensor([found.get(name, -1) for name in ids], dtype=torch.int64)

    def ordinals(self, ids: Sequence[str], view: int) -> Tensor:
        """(n,) int64 ordinals of these rows. Raises DataError that names the first id without a row."""
        found = self.find(ids, view)
        if bool((found < 0).any()):
            raise self.absent([name for name, ordinal in zip(ids, found.tolist(), strict=True) if ordinal < 0], view)
        return found

    def absent(self, ids: Sequence[str], view: int) -> DataError:
        """The error for ids that have no row; it says whether the first was quarantined."""
        state = "quarantined, because the answer was not finite" if (ids[0], view) in self.quarantined else "not recorded"
        return DataError(four_parts(
            f"the store {self.folder} has no row for {len(ids)} of the examples in view {view}", got=f'"{ids[0]}" is {state}',
            expected="one row an example", otherwise="The student would learn another example's answer",
            do="Leave them out" if state.startswith("quarantined") else "Record the missing ones: the recording goes on where it stopped"))

    def locate(self, name: str, view: int) -> Location:
        """Where the rows of this (id, view) lie. Raises DataError where there are none."""
        ordinal = self.ordinals([name], view)
        row, count = int(ordinal), 1
        if self._ends is not None:
            count = int(self._runs["count"][ordinal])
            row = int(self._ends[ordinal]) - count
        number = int(torch.searchsorted(self._starts, row, right=True)) - 1
        part, shard = self._places[number]
        return Location(part, shard.sha256, row - int(self._starts[number]), count)

    def runs(self, ordinals: Tensor) -> dict[str, Tensor]:
        """What is kept once for each of these (n,) int64 ordinals, (n,): `schema.per_sequence`; empty but for sequences."""
        return {name: tensor.index_select(0, ordinals) for name, tensor in self._runs.items()}

    def take(self, ordinals: Tensor) -> dict[str, Tensor]:
        """The rows (n, ...) with these (n,) int64 ordinals, in their order, in any order and with repetitions.

        Of sequences, their runs one after the other: (N, ...), where N is the sum of their counts.
        One index_select a tensor where the store is one shard (as a finished recording of up to 128 MiB is) or was joined in memory.
        Raises IndexError for an ordinal that `ordinals` did not give.
        """
        if self._ends is not None:
            ordinals = self._positions(ordinals, self._ends)
        if self._only is not None:
            return {name: tensor.index_select(0, ordinals) for name, tensor in self._only.items()}
        number = (torch.searchsorted(self._starts, ordinals, right=True) - 1).clamp(min=0)
        # Sorted by shard, each shard fills one slice; then back into the order that was asked for.
        number, order = number.sort(stable=True)
        counts = number.bincount(minlength=len(self._tensors)).tolist()
        rows = (ordinals[order] - self._starts[number]).split(counts)
        back = torch.empty_like(order).index_copy_(0, order, torch.arange(len(order)))
        taken = {}
        for name, item in fields(self.header).items():
            slices = torch.empty((len(order), *item.shape), dtype=getattr(torch, item.dtype))
            for shard, slice_ in enumerate(slices.split(counts)):
                if counts[shard]:
                    torch.index_select(self._tensors[shard][name], 0, rows[shard], out=slice_)
            taken[name] = slices.index_select(0, back)
        return taken

    def table(self, ids: Sequence[str], view: int) -> dict[str, Tensor]:
        """The rows of these ids, in their order, in memory. Raises DataError that names the first id without a row."""
        return self.take(self.ordinals(ids, view))

    def _positions(self, ordinals: Tensor, ends: Tensor) -> Tensor:
        """(N,) numbers of the rows of these sequences."""
        counts = self._runs["count"].index_select(0, ordinals).long()
        before = ends.index_select(0, ordinals) - counts.cumsum(0)
        return before.repeat_interleave(counts) + torch.arange(int(counts.sum()))

    def _open(self, part: str, shard: Shard, check_hashes: bool) -> tuple[list[str], list[int], dict[str, Tensor]]:
        folder = self.folder / PARTS_FOLDER / part
        path = shards.file_of(folder, shard.sha256)
        fault = shards.fault(folder, shard) if check_hashes else None
        if fault:
            raise self._broken(path, part, shard, fault)
        try:
            ids, views = shards.read_index(path)
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in fields(self.header)}
                run = {name: file.get_tensor(name) for name in per_sequence(self.header)}
        except (SafetensorError, OSError, KeyError) as error:
            raise self._broken(path, part, shard, str(error)) from None
        for name, item in fields(self.header).items():
            shape, dtype = (shard.rows, *item.shape), getattr(torch, item.dtype)
            if tuple(tensors[name].shape) != shape or tensors[name].dtype != dtype or (not run and len(ids) != shard.rows):
                raise self._broken(path, part, shard, f"{name} is {tuple(tensors[name].shape)} {tensors[name].dtype}")
        for name, item in per_sequence(self.header).items():
            if tuple(run[name].shape) != (len(ids),) or run[name].dtype != getattr(torch, item.dtype):
                raise self._broken(path, part, shard, f"{name} is {tuple(run[name].shape)} {run[name].dtype}")
        if run and (bool((run["count"] < 0).any()) or int(run["count"].sum()) != shard.rows):
            raise self._broken(path, part, shard, f"runs of {int(run['count'].sum())} positions")
        self._places.append((part, shard))
        self._tensors.append(tensors)
        return ids, views.tolist(), run

    def _broken(self, path: Path, part: str, shard: Shard, got: str) -> DataError:
        return DataError(four_parts(
            f'shard {path.name} in part "{part}" of the store {self.folder} is broken', got=got, expected=f"sha256 {shard.sha256[:12]}...",
            otherwise=f"{shard.rows} rows would be read that the teacher never said",
            do="Run the recording again: only the rows of this shard are asked again"))
