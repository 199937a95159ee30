"""A teacher that was asked before: its answers are looked up by (id, view) in a store instead of being computed."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy.errors import DataError, RecipeError, four_parts
from understudy.records import Batch, Knowledge, StudentOutput, TopKRows
from understudy.store.codec import decode
from understudy.store.reader import RESIDENT_BYTES, Reader
from understudy.store.state_codec import layer_of
from understudy.store.token_codec import runs

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What a recipe may write: `teacher: {kind: stored, path: FOLDER}`, a store made by `understudy record`."""

    path: str

    def __post_init__(self) -> None:
        if not self.path:
            raise RecipeError(four_parts(
                "teacher: path is empty", got='""', expected="the folder of a store", otherwise="There would be no teacher",
                do="Write the folder that `understudy record` printed"))


@dataclass(frozen=True, slots=True)
class _Table:
    """What the store says for one view. rows: (N,) position of each example, -1 where it has none; None where it is its own number."""

    rows: Tensor | None
    partial: bool
    knowledge: Knowledge | None


class Teacher:
    """Looks up `(batch.ids, batch.view)`; the same knowledge as the live teacher's within the header's stated error.

    Where the decoded rows fit in `resident_bytes`, they lie in memory as tables, and log-probabilities at the fixed
    `temperatures` are computed once: a batch then costs one index_select. Otherwise rows are taken from the mapped shards and
    decoded for each batch. Rows of sequences always are: they would be up to four times as large, and decode faster than a model reads
    them.

    Of sequences, a batch's labels (B, L) say which positions count; the knowledge is of these N, in row-major order. A sequence whose
    labels are not those that it was recorded with (shortened, shifted, another text) is refused. Of states it is `Knowledge.hidden`: every
    temperature and objective can be computed from it, and the fused loss never makes the logits.

    Args:
        reader: the store, opened with the fingerprints that it must have.
        ids: (N,) the data set's table of ids, which `batch.ids` are row numbers of.
        views: the views that will be asked. An example may lack a row as long as it is not asked for.
        temperatures: at which `Knowledge.ready` is filled (dense stores); of tokens, those that will be asked for: one that was not kept is
            estimated, with a warning (`Header.lacks`).
        logits: whether `Knowledge.logits` is filled too; False where every objective asks for `temperatures` only.
        features: {teacher tap: the store of that layer}, recorded from the same teacher, data and transform; each fills
            `Knowledge.features[tap]`. Layers stay as they are stored, float16 or int8, until a batch is decoded: as float32 they would
            be two or four times as large.
        resident_bytes: the memory that the tables may take; on another device than the CPU, each layer's too.
        device: where the tables lie and the knowledge is wanted.

    Raises:
        DataError: the store has no row at all for a view; it holds a layer instead of answers; `features` are another teacher's; a
            temperature that rows of tokens can't answer.
    """

    def __init__(
        self,
        reader: Reader,
        ids: Sequence[str],
        *,
        views: Sequence[int] = (0,),
        temperatures: Sequence[float] = (),
        logits: bool = True,
        features: Mapping[str, Reader] | None = None,
        resident_bytes: int = RESIDENT_BYTES,
        device: str | torch.device = "cpu",
    ) -> None:
        header = reader.header
        if header.keep == "feature":
            raise DataError(
                four_parts(
                    f"the store {reader.folder} holds no answers",
                    got=header.codec,
                    expected="a store of logits",
                    otherwise="There would be no class to learn",
                    do="Give the folder that `understudy record` printed",
                )
            )
        dense = header.keep == "dense"
        self.provides = frozenset({"logits"} if dense or header.keep == "states" else {"topk"}) | ({"features"} if features else set())
        self.fingerprint = header.teacher
        self._reader = reader
        self._ids = ids
        self._device = torch.device(device)
        self._temperatures = tuple(temperatures) if header.sequences else ()
        self.head: nn.Linear | None = layer_of(reader.head, self._device) if header.head else None
        """The teacher's output layer, of a store of states."""
        for temperature in self._temperatures:
            warning = header.lacks(temperature)
            if warning:
                _log.warning("%s", warning)
        found = _found(reader, ids, views)
        self._layers = {
            tap: _Layer(tap, opened, reader, ids, views, resident_bytes, self._device) for tap, opened in (features or {}).items()
        }
        wanted = tuple(temperatures) if dense else ()
        values = header.classes * (header.members * logits + len(wanted)) if dense else 3 * header.k + 2 * len(header.temperatures)
        recorded = sum(int((ordinals >= 0).sum()) for ordinals in found.values())
        self.resident = not header.sequences and 4 * values * recorded <= resident_bytes
        """Whether the decoded rows lie in memory as tables."""
        self._place = self._device if self.resident else torch.device("cpu")
        self._tables = {view: self._table(ordinals, wanted, logits or not dense) for view, ordinals in found.items()}

    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """The stored knowledge, row by row in the batch's order. Raises DataError naming an example that has no row."""
        said = self._said(batch)
        return dataclasses.replace(said, features={tap: layer.take(batch) for tap, layer in self._layers.items()}) if self._layers else said

    def _said(self, batch: Batch) -> Knowledge:
        table = self._tables.get(batch.view)
        if table is None:
            raise self._reader.absent([self._ids[int(row)] for row in batch.ids], batch.view)
        ids = batch.ids.to(self._place)
        rows = ids if table.rows is None else table.rows.index_select(0, ids)
        if table.partial and bool((rows < 0).any()):
            raise self._reader.absent([self._ids[int(row)] for row in ids[rows < 0]], batch.view)
        if self._reader.header.sequences:
            self._refuse_other_positions(batch, rows)
            encoded = {name: tensor.to(self._device) for name, tensor in self._reader.take(rows).items()}
            return decode(encoded, self._reader.header, self._temperatures, self.head)
        if table.knowledge is None:
            return _each(decode(self._reader.take(rows), self._reader.header), lambda tensor: tensor.to(self._device))
        return _each(table.knowledge, lambda tensor: tensor.index_select(0, rows))

    def _refuse_other_positions(self, batch: Batch, ordinals: Tensor) -> None:
        """Raise DataError naming a sequence whose labels are not the ones that the store's positions were recorded for."""
        expected = self._reader.runs(ordinals)
        labels = batch.labels.cpu()
        if labels.ndim != 2 or len(labels) != len(ordinals):
            raise DataError(four_parts(
                "positions can't be told apart", got=f"labels {tuple(labels.shape)} of {len(ordinals)} sequences", expected="labels (B, L)",
                otherwise="Answers would be given to the wrong positions", do="Give the batch as the sequences were read"))
        found = runs(labels)
        wrong = (found.counts != expected["count"]) | (found.prints != expected["labels"])
        if bool(wrong.any()):
            row = int(wrong.nonzero()[0])
            got, recorded = int(found.counts[row]), int(expected["count"][row])
            raise DataError(four_parts(
                f'sequence "{self._ids[int(batch.ids[row])]}" is not the one that was recorded in {self._reader.folder}',
                got=f"{got} positions" if got != recorded else f"{got} positions with other labels, such as shifted ones",
                expected=f"the {recorded} positions that the teacher was asked about",
                otherwise="Each position would learn the answer of another",
                do="Read the texts with the settings of the recording (tokenizer, length, packing), or record again"))

    def _table(self, ordinals: Tensor, temperatures: tuple[float, ...], logits: bool) -> _Table:
        partial = bool((ordinals < 0).any())
        if not self.resident:
            return _Table(ordinals, partial, None)
        present = (ordinals >= 0).nonzero().squeeze(1)
        everything = decode(self._reader.take(ordinals[present]), self._reader.header)
        ready = {temperature: _log_probs(everything, temperature) for temperature in temperatures}
        kept = dataclasses.replace(everything, logits=everything.logits if logits else None, ready=ready)
        rows = torch.full_like(ordinals, -1).index_copy_(0, present, torch.arange(len(present))).to(self._place) if partial else None
        return _Table(rows, partial, _each(kept, lambda tensor: tensor.to(self._place)))


class _Layer:
    """Rows of one layer, decoded batch by batch.

    The CPU reads the store itself, which is mapped or joined in memory already: a table would be a second copy. Another device gets
    the encoded rows once, where they fit.
    """

    def __init__(
        self, tap: str, reader: Reader, answers: Reader, ids: Sequence[str], views: Sequence[int], resident_bytes: int, device: torch.device
    ) -> None:
        header = answers.header
        reader.header.refuse_other(
            {"keep": "feature", "tap": tap, "teacher": header.teacher, "data": header.data, "transform": header.transform},
            f"the store {reader.folder}",
        )
        self._reader, self._ids, self._device = reader, ids, device
        found = _found(reader, ids, views)
        self._partial = {view: bool((ordinals < 0).any()) for view, ordinals in found.items()}
        self._table: dict[str, Tensor] | None = None
        if device.type != "cpu" and reader.nbytes <= resident_bytes:
            kept = torch.cat([ordinals[ordinals >= 0] for ordinals in found.values()])
            self._table = {name: tensor.to(device) for name, tensor in reader.take(kept).items()}
            begin = 0
            for view, ordinals in found.items():
                present = ordinals >= 0
                count = int(present.sum())
                ordinals[present] = torch.arange(begin, begin + count)
                found[view] = ordinals.to(device)
                begin += count
        self._found = found

    def take(self, batch: Batch) -> Tensor:
        """(B, ...) float32. Raises DataError naming an example that has no row."""
        found = self._found.get(batch.view)
        if found is None:
            raise self._reader.absent([self._ids[int(row)] for row in batch.ids], batch.view)
        ids = batch.ids.to(found.device)
        rows = found.index_select(0, ids)
        if self._partial[batch.view] and bool((rows < 0).any()):
            raise self._reader.absent([self._ids[int(row)] for row in ids[rows < 0]], batch.view)
        if self._table is None:
            encoded = {name: tensor.to(self._device) for name, tensor in self._reader.take(rows).items()}
        else:
            encoded = {name: tensor.index_select(0, rows) for name, tensor in self._table.items()}
        return decode(encoded, self._reader.header).features[self._reader.header.tap]


def _found(reader: Reader, ids: Sequence[str], views: Sequence[int]) -> dict[int, Tensor]:
    """{view: (N,) ordinals, -1 where an example has no row}. Raises DataError for a view without any row."""
    found = {view: reader.find(ids, view) for view in views}
    for view, ordinals in found.items():
        if not bool((ordinals >= 0).any()):
            raise reader.absent(list(ids), view)
    return found


def _log_probs(knowledge: Knowledge, temperature: float) -> Tensor:
    """(N, C) log-probabilities, made in pieces so that the softmax of a large table needs no second one."""
    assert knowledge.logits is not None
    pieces = [dataclasses.replace(knowledge, logits=piece).log_probs(temperature) for piece in knowledge.logits.split(65536)]
    return (torch.cat(pieces) if len(pieces) > 1 else pieces[0]).clamp_(min=-1e30)


def _each(knowledge: Knowledge, change: Callable[[Tensor], Tensor]) -> Knowledge:
    """The knowledge with every tensor of rows changed; the members' weights have no rows."""
    topk = knowledge.topk
    return Knowledge(
        logits=None if knowledge.logits is None else change(knowledge.logits), member_weights=knowledge.member_weights,
        topk=None if topk is None else TopKRows(
            ids=change(topk.ids), logits=change(topk.logits), log_sum_exp={t: change(row) for t, row in topk.log_sum_exp.items()},
            tail_log_mass={t: change(row) for t, row in topk.tail_log_mass.items()}),
        ready={temperature: change(rows) for temperature, rows in knowledge.ready.items()})
