"""The forms in which a design could ship: the file of each, what it takes, and what it keeps of the teacher on validation rows."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from understudy import atomic, kinds
from understudy.cache import Cache
from understudy.compress.race import race
from understudy.compress.search import Cost
from understudy.errors import DataError, RecipeError
from understudy.evaluation import cost, metrics, retention
from understudy.export import onnx
from understudy.export._parity import Mismatch
from understudy.run_folder import RunFolder
from understudy.runtimes.worker import trimmed
from understudy.stages import finish
from understudy.stages.common import complete, digest, finished, fresh_student
from understudy.stages.machine import hardware
from understudy.stages.prepare import Given, Prepared
from understudy.stages.variants import Variant
from understudy.students.seals import hash_of
from understudy.students.weights import load_weights

VERSION = 2
CALLS, THREADS = 300, 1
"""Calls of each file, at most, all files in turns; and threads of ONNX Runtime."""
Tell = Callable[[str, float], None]


@dataclass(frozen=True)
class Form:
    """A precision. export: what a recipe's `export` says of it. untrained: its options for a student that has learnt nothing, of whose
    answers no proof is asked. bits: of a weight, at least."""

    precision: str
    export: Mapping[str, Any]
    untrained: Mapping[str, Any]
    bits: int


FORMS = (
    Form("float32", {"kind": "onnx"}, {"tolerance": 0.99}, 32),
    Form("int8", {"kind": "onnx_int8"}, {"agreement": 1e-6, "drop": 0.99, "calls": 30}, 8),
)


def forms(exports: Sequence[Mapping[str, Any]]) -> list[Form]:
    """Those whose exporter there is, each with the options that a recipe's `export` names for it, as it is what the pick will ship.
    RecipeError, with the command that helps, where ONNX is not installed."""
    kinds.configure("export", FORMS[0].export["kind"], {}).installed()
    asked = {entry["kind"]: entry for entry in exports}
    there = [form for form in FORMS if form.export["kind"] in kinds.names("export")]
    there = [replace(form, export=asked.get(form.export["kind"], form.export)) for form in there]
    return [_with_options(form) for form in there]


def _with_options(form: Form) -> Form:
    """The form by the name and the bits that its options give it."""
    if form.export.get("half_weights"):
        return replace(form, precision="float16", bits=16)
    if form.export.get("method") == "weight_only" and form.export.get("bits") == 4:
        return replace(form, precision="int4", bits=4)
    return form


@dataclass(frozen=True)
class Trial:
    """A design in one form. weights: the file of a trained student, None for the student before its first step."""

    design: Variant
    form: Form
    weights: Path | None = None

    @property
    def name(self) -> str:
        """How it is listed."""
        return f"{self.design.name}, {self.form.precision}"


@dataclass(frozen=True)
class Tried:
    """What came of a trial. data: the file, None where it could not be made. failed: why not, or why it is not its student; else ""."""

    trial: Trial
    data: bytes | None
    failed: str

    @property
    def bytes(self) -> int:
        """Of the file."""
        return len(self.data or b"")


@dataclass
class Yard:
    """Where files are made and timed: results are kept in the cache, those of a clock with the machine's words in their key."""

    tree: Mapping[str, Any]
    prepared: Prepared
    given: Given
    cache: Cache

    def __post_init__(self) -> None:
        self.probe = finish.probe_of(self.tree, self.prepared, self.prepared.validation)
        """Validation rows in place of the test rows on which a run proves its artefacts: these choose here, the test rows judge later."""

    def least_bytes(self, design: Variant, form: Form) -> int:
        """Below which no file of this design can be: its weights alone, in the form's bits."""
        return cost.parameters(fresh_student(design.tree, self.prepared, self.given, 0)) * form.bits // 8

    def tried(self, trials: Sequence[Trial], tell: Tell) -> list[Tried]:
        """The file of each trial."""
        found = []
        for at, trial in enumerate(trials):
            tell(trial.name, at / len(trials))
            found.append(self._tried(trial))
        return found

    def timed(self, files: Sequence[Tried]) -> list[Cost]:
        """Bytes, and the median seconds of a call with one row; files that nobody has timed on this machine are called in turns."""
        about = {"machine": hardware()["words"], "threads": THREADS, "row": digest(self._row.tolist())}
        places = [self.cache.folder("pace", {**about, "file": digest((one.data or b"").hex())}, VERSION) for one in files]
        fresh = {str(at): one.data for at, one in enumerate(files) if one.data is not None and not self.cache.done(places[at])}
        for at, pace in (race(fresh, self._row, CALLS, threads=THREADS) if fresh else {}).items():
            with self.cache.claim(places[int(at)]):
                self.cache.finish(places[int(at)], {"milliseconds": pace.p50, "calls": pace.calls})
        return [Cost(one.bytes, self.cache.meta(place)["milliseconds"] / 1000) if one.data is not None else Cost(float("inf"), float("inf"))
                for one, place in zip(files, places, strict=True)]

    def logits(self, one: Tried) -> np.ndarray:
        """(m, C) what the file says of all validation rows."""
        assert one.data is not None
        return onnx.run(one.data, self.prepared.rows.stored[self.prepared.validation].numpy(), self.prepared.rows.pad)

    @property
    def _row(self) -> np.ndarray:
        return np.ascontiguousarray(trimmed(self.probe.inputs[:1], self.prepared.rows.pad))

    def _tried(self, trial: Trial) -> Tried:
        prepared, model = self.prepared, trial.design.tree["student"]["model"]
        made = {
            "model": complete(model, prepared), "shape": prepared.shape, "classes": prepared.classes, "read": prepared.transform,
            "rows": digest([self.probe.inputs.tolist(), prepared.distilled.tolist()]), "data": prepared.examples.fingerprint,
            "form": [trial.form.export, trial.form.untrained], "metric": [self.tree["metric"], self.tree["metric_weights"]],
            "weights": trial.weights and hash_of(trial.weights)}  # fmt: skip
        place = self.cache.folder("form", made, VERSION)
        with self.cache.claim(place):
            if not self.cache.done(place):
                data, failed = self._export(trial)
                if data is not None:
                    atomic.write_bytes(place / onnx.FILE, data)
                self.cache.finish(place, {"failed": failed})
        file = place / onnx.FILE
        return Tried(trial, file.read_bytes() if file.is_file() else None, self.cache.meta(place)["failed"])

    def _export(self, trial: Trial) -> tuple[bytes | None, str]:
        tree, form = trial.design.tree, trial.form
        options = {**{key: value for key, value in form.export.items() if key != "kind"}, **({} if trial.weights else form.untrained)}
        module: nn.Module = finished(fresh_student(tree, self.prepared, self.given, 0))
        if trial.weights:
            load_weights(module, trial.weights)
        with tempfile.TemporaryDirectory(prefix="understudy-") as made:
            student = finish.ship(tree, self.prepared, module.eval(), RunFolder(Path(made), "trial"), 0, "")
            try:
                exporter = kinds.configure("export", form.export["kind"], options)
                return Path(exporter.export(student, made, self.probe, module)["path"]).read_bytes(), ""
            except Mismatch as error:
                file = error.folder / onnx.FILE if error.folder else None
                return file.read_bytes() if file and file.is_file() else None, str(error)
            except (RecipeError, DataError) as error:
                return None, str(error)


@dataclass(frozen=True)
class Judge:
    """The metric on validation rows, and the teacher's. teacher: (m, C) log-probabilities of what it said of them."""

    tree: Mapping[str, Any]
    prepared: Prepared
    teacher: np.ndarray

    def scores(self, log_probs: np.ndarray) -> np.ndarray:
        """(m,) whose mean is the metric."""
        prepared = self.prepared
        return finish.scorer_of(self.tree, prepared).scores(log_probs, prepared.rows.labels[prepared.validation].numpy())

    def of(self, logits: np.ndarray) -> tuple[float, float | None]:
        """The metric of logits (m, C), and how much of the teacher's that is."""
        scores = self.scores(metrics.log_softmax(logits))
        return float(scores.mean()), self.kept_of(float(scores.mean()))

    def kept_of(self, value: float | None) -> float | None:
        """How much of the teacher's a value of the metric is."""
        if value is None:
            return None
        teacher, higher = self.scores(self.teacher), metrics.higher_is_better(self.tree["metric"])
        return retention.retention(np.full((1, len(teacher)), value), teacher, higher).value
