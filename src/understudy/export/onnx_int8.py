"""ONNX in 8 bits or fewer, of the student's float ONNX file: the way that is fastest here and keeps the student's answers."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from understudy import atomic
from understudy.compress import quantize
from understudy.compress.graph import opset
from understudy.compress.race import race, runtime
from understudy.compress.ranges import LEAST
from understudy.compress.sensitivity import Limits, Mixed, mixed
from understudy.compress.weights import weight_only
from understudy.errors import DataError, RecipeError, four_parts
from understudy.export import _choice, _parity, onnx
from understudy.export._choice import Candidate
from understudy.export._format import Rounding, Source
from understudy.export._probe import Probe
from understudy.preprocess.text import trimmed
from understudy.students import artefact
from understudy.students.calls import padding

HELD_OUT = 0.5
"""Share of calibration rows that may be equal to held-out ones, as small pictures and rows of few columns are by chance."""
LEARNED, LEVELS = "learned_ranges", "weight_levels"
"""Where config.json's extra has {layer: [lowest, highest]} of what goes into the layers of a student that was trained with quantisation,
and how many levels on each side of zero its weights were rounded to: the file gets them too, whatever machine writes it."""


@dataclass(frozen=True)
class Exporter(Rounding):
    """model.onnx with integer weights beside config.json, which says what goes in and comes out, and how it was made.

    method: static: int8 weights and activations with ranges from calibration rows, for convolutions and wide layers; dynamic: int8
        weights, activations scaled anew in each call, for matrix products only; weight_only: integers that become float before they are
        used: smaller, not faster; auto: static and dynamic are made, and `_choice` says which is kept.
    calibration: rows of the training split, at most, 64 at least. ranges: how they give ranges (`compress.quantize.calibrated`).
    keep_float: layers that stay as they are, by their names in the student (or of nodes in the file). Others join them by themselves,
        the most harmful first, until the answers are the student's on the calibration rows. Not of weight_only.
    bits: of weight_only, 8 or 4. block: inputs that share a scale there.
    agreement: the least share of rows with the student's class (vectors: the least cosine), of calibration rows and of those that choose.
        drop: the most that the upper end of the 95 % interval of the lost metric may be on held-out rows, and the mean on those that
        choose. max_bytes: the largest file, None without a limit.
    calls: of each file, to time it.

    Static int8 is up to twice as fast as float for convolutions on x86 with VNNI, and slower than float for layers of a few dozen numbers,
    which fit into the cache anyway. A student trained with quantisation brings its ranges: nothing is calibrated that it has learned.
    """

    packages: ClassVar[tuple[str, ...]] = ("onnx", "onnxscript", "onnxruntime")
    extra: ClassVar[str] = "export"
    method: Literal["auto", "static", "dynamic", "weight_only"] = "auto"
    calibration: int = 512
    ranges: Literal["minmax", "percentile", "entropy"] = "minmax"
    keep_float: tuple[str, ...] = ()
    bits: Literal[8, 4] = 8
    block: int = 32
    agreement: float = 0.99
    drop: float = _parity.DROP
    max_bytes: int | None = None
    calls: int = 300

    def __post_init__(self) -> None:
        for name, good, wanted, otherwise, do in [
            ("calibration", self.calibration >= LEAST, f"{LEAST} or more", "Ranges would be chance", "Use 512"),
            ("agreement", 0 < self.agreement <= 1, "0 < agreement <= 1", "Every file would pass, or none", "Use 0.99"),
            ("drop", 0 < self.drop < 1, "0 < drop < 1", "Every file would pass, or none", "Use 0.005"),
            ("block", self.block >= 16 and self.block & (self.block - 1) == 0, "16, 32, 64, ...", "No kernel computes it", "Use 32"),
            ("keep_float", not (self.keep_float and self.method == "weight_only"), "nothing beside weight_only",
             "Every layer's weights would be integers all the same", "Leave it out, or take another method"),
            ("calls", self.calls >= 1, "1 or more", "There would be no time to compare", "Use 300"),
            ("max_bytes", self.max_bytes is None or self.max_bytes > 0, "bytes, or nothing", "No file is that small", "Leave it out"),
        ]:
            if not good:
                raise RecipeError(four_parts(
                    f"onnx_int8: {name} is not usable", got=getattr(self, name), expected=wanted, otherwise=otherwise, do=do))

    def export(
        self, student_folder: str | os.PathLike[str], out_folder: str | os.PathLike[str], probe: Probe, module: nn.Module | None = None,
        trained: Source | None = None,
    ) -> dict[str, Any]:
        """Write `out_folder`/onnx_int8; ONNX Runtime has to give the student's answers on the probe's rows but for rounding.

        Beside path, bytes and parity: "method" and "made_of" of the file that is kept; "candidates", a row a file with bytes, milliseconds
        and errors, "kept", which of them, and "conditions" of the times; "kept_float", layers in float; "sensitivity", a row a layer with
        what quantising it alone costs; "reason". The file is chosen by `_choice` before the probe's own rows are looked at; what they say
        of the others decides nothing. What was chosen of the same before, in this folder, is chosen again.

        Raises DataError where the calibration rows are fewer than 64, or are the probe's own.
        """
        self.loaded()
        out, source = Path(os.path.abspath(out_folder)) / self.kind, (Path(student_folder), module)
        student, reference = _parity.answers(source[0], probe.inputs, module)
        vectors = student.vectors is not None
        with _parity.kept(out, onnx.FILE, artefact.CONFIG) as folder:
            whole = onnx.to_onnx(student, probe.some.inputs)
            made = [self._made(method, whole, student, probe) for method in self._methods]
            if trained is not None:  # its own float file is what its layers are compared with, and never what it is proved against
                other, _ = _parity.answers(trained[0], probe.inputs[:1], trained[1])
                made.append(self._made_of_trained(onnx.to_onnx(other, probe.some.inputs), other, probe))
            students = list({one.name: one.student for one in made}.values())
            rows = probe.choosing
            key = _choice.key(asdict(self), students, rows)
            choice = _choice.recorded(out, key, made) or self._chosen(made, whole, source, probe, rows)
            kept = choice.kept
            files = _choice.usable(made)
            pad = padding(student.preprocess)
            parities = {name: _parity.measured(reference, onnx.run(one, probe.inputs, pad), probe, vectors) for name, one in files.items()}
            data, parity = files[kept.name], parities[kept.name]
            about = {
                "method": kept.method, "made_of": "aware" if kept.trained else "student", "candidates": choice.table(made, whole, parities),
                "kept": kept.name, "kept_float": list(kept.found.kept if kept.found else self.keep_float),
                "sensitivity": _table(kept.found) if kept.found else [], "reason": choice.reason,
                "conditions": choice.conditions}
            for file, content in {onnx.FILE: data, **onnx.files(kept.student)}.items():
                atomic.write_bytes(folder / file, content)
            described = {
                **onnx.interface(student, probe.inputs), "sha256": hashlib.sha256(data).hexdigest(), "opset": opset(data),
                "parity": parity}
            atomic.write_json(folder / artefact.CONFIG, {**kept.student.config, "onnx": described, "quantised": {**about, "key": key}})
            try:
                self._proved(data, parity)
            except _parity.Mismatch as error:
                error.about = about
                raise
        return {"path": str(out / onnx.FILE), "bytes": len(data), "parity": parity, **about}

    @property
    def _methods(self) -> tuple[str, ...]:
        """The ways to go; the first is the one that training with quantisation is for, where there is a choice."""
        return ("static", "dynamic") if self.method == "auto" else (self.method,)

    def _made(self, method: str, whole: bytes, student: artefact.Student, probe: Probe) -> Candidate:
        """One way's file, or why there is none."""
        if method == "weight_only":
            return Candidate(method, student, weight_only(whole, self.bits, self.block))
        if method == "dynamic":
            try:
                return Candidate(method, student, quantize.dynamic(whole, keep_float=self.keep_float))
            except RecipeError as error:
                if self.method == method:
                    raise
                return Candidate(method, student, None, str(error))
        try:
            return self._static(whole, student, probe)
        except (DataError, RecipeError) as error:
            if self.method == method:
                raise
            return Candidate(method, student, None, str(error))

    def _made_of_trained(self, whole: bytes, student: artefact.Student, probe: Probe) -> Candidate:
        """The file of the student trained on, in the first of the ways; where it can't be made, the other one can still ship."""
        try:
            return replace(self._made(self._methods[0], whole, student, probe), trained=True)
        except (DataError, RecipeError) as error:
            return Candidate(self._methods[0], student, None, str(error), trained=True)

    def _static(self, whole: bytes, student: artefact.Student, probe: Probe) -> Candidate:
        """Calibrated on training rows, with the layers that hurt in float."""
        rows = probe.calibration[: self.calibration]
        refuse_held_out(rows, probe.inputs)
        extra = student.config.get("extra", {})
        learned = {layer: (low, high) for layer, (low, high) in extra.get(LEARNED, {}).items()}
        ready = quantize.calibrated(whole, rows, ranges=self.ranges, learned=learned, levels=extra.get(LEVELS))
        limits = Limits(self.agreement, self.drop, self.max_bytes)
        reference = onnx.run(whole, rows, padding(student.preprocess))
        found = mixed(ready, rows, reference, limits=limits, keep_float=self.keep_float, vectors=student.vectors is not None)
        return Candidate("static", student, found.data, found=found)

    def _chosen(
        self, made: Sequence[Candidate], whole: bytes, source: Source, probe: Probe, rows: Probe | None
    ) -> _choice.Choice:
        """The candidate to keep. source: the student whose answers the files shall give; rows: that choose, None where there are none."""
        files, threads = _choice.usable(made), torch.get_num_threads()
        row = (rows or probe).inputs[:1]
        read: Any = made[0].student.preprocess
        row = trimmed(row, read.pad) if read.kind == "text" else row  # as long as its text is
        paces = race({_choice.FLOAT: whole} | files, row, self.calls, threads=threads)
        conditions = f"batch 1, {runtime()} on the CPU, {threads} thread(s), {probe.machine}"
        if rows is None:
            return _choice.choose(made, None, paces, {}, conditions)
        student, reference = _parity.answers(source[0], rows.inputs, source[1])
        limits, vectors = Limits(self.agreement, self.drop, self.max_bytes), student.vectors is not None
        ran = {name: onnx.run(data, rows.inputs, padding(student.preprocess)) for name, data in files.items()}
        seen = {name: _choice.look(data, reference, ran[name], rows, limits, vectors) for name, data in files.items()}
        return _choice.choose(made, rows, paces, seen, conditions)

    def _proved(self, data: bytes, parity: _parity.Parity) -> None:
        """Raises Mismatch for a file that answers differently on the held-out rows, or that is larger than it may be."""
        _parity.prove(parity, self.drop)
        if self.max_bytes is not None and len(data) > self.max_bytes:
            raise _parity.Mismatch(four_parts(
                "the quantised file is larger than max_bytes", got=f"{len(data):,} bytes", expected=f"at most {self.max_bytes:,}",
                otherwise="It would not fit where it shall go", do="Allow more, or take a smaller student"), parity)


def refuse_held_out(rows: np.ndarray, held_out: np.ndarray) -> None:
    """DataError where more than half of the calibration rows are held-out rows: the file would have been fitted to what judges it."""
    known = {row.tobytes() for row in held_out}
    shared = sum(row.tobytes() in known for row in rows)
    if shared > HELD_OUT * len(rows):
        raise DataError(four_parts(
            "the calibration rows are those that the file is judged on", got=f"{shared} of {len(rows)} rows are also held out",
            expected=f"rows of the training split, with at most {HELD_OUT:.0%} that happen to be equal",
            otherwise="The ranges would fit the test rows, and the proof prove nothing",
            do="Calibrate on training rows"))


def _table(found: Mixed) -> list[dict[str, Any]]:
    """Plain rows of the sensitivity table."""
    return [{"layer": harm.node.layer, "op": harm.node.op, "weights": harm.node.weights, "kl_nats": harm.cost.kl_nats, "mse": harm.cost.mse,
             "agreement": harm.cost.agreement, "float": harm.node.layer in found.kept} for harm in found.table]
