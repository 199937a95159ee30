"""Results -> facts -> summary -> student folder, exports, page, gates."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy import atomic, kinds, pictures, randomness
from understudy.answer import answer
from understudy.errors import DataError, UnderstudyError, four_parts
from understudy.evaluation import similarity
from understudy.events import Event, OnEvent
from understudy.export._format import Format
from understudy.export._parity import Mismatch
from understudy.export._probe import Probe
from understudy.preprocess.passages import Passages
from understudy.preprocess.text import Text
from understudy.records import Hidden, Knowledge
from understudy.report import html
from understudy.report.facts import Arm, Classification, Drafts, Embedding, Facts, Language, Latency, Masked, Shifted, Size
from understudy.run_folder import RunFolder
from understudy.sections import GIVEN
from understudy.selftest.subject import heard
from understudy.stages.arms import EXITS, ArmResult
from understudy.stages.common import class_counts, complete, digest, finished, fresh_student
from understudy.stages.layers import width_of
from understudy.stages.lessons import Lessons
from understudy.stages.prepare import Given, Prepared
from understudy.stages.tasks.classification import class_weights
from understudy.stages.tasks.embedding import Judged
from understudy.stages.tasks.language import Documents, likeness, on_own_text
from understudy.stages.taught import Own
from understudy.stages.teach import size_of
from understudy.stages.writing import writing_of
from understudy.students import artefact
from understudy.students.weights import load_weights
from understudy.training.numerics import Numerics

PROBED, PROBED_TEXTS = 10_000, 8
"""Held-out rows on which an artefact has to agree with the student, at most: of running text few, as every token has an answer."""
CALIBRATED = 512
"""Training rows, at most, that a format may look at."""
RATED, READ_AT_ONCE = 256, 32
"""Test sentences on which texts a second are measured, and how many a model gets together."""
LONG = 0.25
"""The share of test pairs that stands beside the average: those with the longest sentences."""
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 20.0)


def facts_of(
    tree: Mapping[str, Any],
    lessons: Lessons,
    arms: Mapping[str, ArmResult],
    student: Size,
    provenance: Mapping[str, Any],
    exports: Sequence[Mapping[str, Any]],
    latency: Latency | None,
    trained: Callable[[str, int], nn.Module],
    drafts: Drafts | None = None,
    unrecovered: Tensor | None = None,
    quantised: Mapping[str, Any] | None = None,
    shifted: Shifted | None = None,
    artefacts: Mapping[str, np.ndarray] | None = None,
) -> Facts:
    """Everything the report is made from. trained: the student of an arm and a seed. drafts: what they did as drafts of the teacher.

    unrecovered: (n, C) what a pruned student said of the test rows before its first step. quantised: what training with quantisation gave.
    shifted: what the models said of spoilt rows. artefacts: (n, C) what quantised files said of the test rows, where groups are compared.
    """
    shipped = shipped_seed(tree, arms["distilled"])
    common: dict[str, Any] = {
        "name": tree["name"],
        "metric": tree["metric"],
        "split": lessons.data.split.describe(),
        "control": tree["training"]["control"],
        "control_reason": tree["training"]["control_reason"],
        "shipped": shipped,
        "teacher": lessons.taught.size,
        "student": student,
        "curves": [*lessons.taught.rows, *(row for arm in arms.values() for row in arm.rows)],
        "selftest": list(lessons.table),
        "gates": tree["gates"],
        "provenance": provenance,
        "exports": list(exports),
        "latency": latency,
        "quantised": quantised,
        "self_taught": lessons.scheduled == "self",
        "notes": [*lessons.data.notes, *lessons.taught.notes, *lessons.notes, *(note for arm in arms.values() for note in arm.notes)],
    }
    if lessons.data.generative:
        return _told(tree, lessons, arms, common, trained, drafts)
    if lessons.data.task == "embedding":
        return _similar(lessons, arms, shipped, common)
    return _classified(tree, lessons, arms, shipped, common, unrecovered, shifted, artefacts or {})


def _classified(
    tree: Mapping[str, Any],
    lessons: Lessons,
    arms: Mapping[str, ArmResult],
    shipped: int,
    common: Mapping[str, Any],
    unrecovered: Tensor | None,
    shifted: Shifted | None,
    artefacts: Mapping[str, np.ndarray],
) -> Facts:
    prepared, said = lessons.data, lessons.said(arms["distilled"], shipped)
    temperature = next((entry["temperature"] for entry in tree["objective"] if isinstance(entry.get("temperature"), int | float)), 1.0)
    test = prepared.judged.numpy()
    return Classification(
        **common,
        classes=prepared.classes,
        class_counts=class_counts(prepared),
        class_weights=class_weights(tree, prepared.classes),
        groups=prepared.examples.groups or {},
        ids_test=prepared.examples.ids[test],
        labels_test=prepared.examples.labels[test],
        outside=np.isin(test, prepared.outside.numpy()),
        labels_val=prepared.examples.labels[prepared.validation.numpy()],
        teacher_log_probs_test=spoken(said["test"], prepared.outputs),
        teacher_log_probs_val=spoken(said["validation"], prepared.outputs),
        teacher_tempered_test={
            t: said["test"].log_probs(t).numpy() for t in sorted({*TEMPERATURES, float(temperature)}) if said["test"].logits is not None
        },
        temperature=float(temperature),
        arms={name: Arm(arm.logits_test, arm.logits_validation, arm.seeds) for name, arm in arms.items()},
        unrecovered_test=None if unrecovered is None else unrecovered.numpy(),
        duplicates=np.flatnonzero(np.isin(test, prepared.duplicates)),
        clusters=np.zeros(0, dtype=np.int64) if prepared.examples.clusters is None else prepared.examples.clusters[test],
        sensitive={name: groups[test] for name, groups in prepared.examples.sensitive.items()},
        artefacts_test=artefacts,
        shifted=shifted,
        thumbnail=pictures.thumbnails(prepared.examples, test),
    )


def _told(
    tree: Mapping[str, Any],
    lessons: Lessons,
    arms: Mapping[str, ArmResult],
    common: Mapping[str, Any],
    trained: Callable[[str, int], nn.Module],
    drafts: Drafts | None,
) -> Facts:
    prepared, own = lessons.data, lessons.taught.own
    test = Documents(prepared, prepared.test)
    # A translated teacher says nothing at some positions, and elsewhere what its tokens become: no student's answers are like that.
    alike = {} if own is not None else {
        name: likeness(prepared, lessons.taught.fixed, [trained(name, seed) for seed in arm.seeds], Numerics())
        for name, arm in arms.items()
    }
    transfer, strayed = tree["data"]["transfer"], {}
    if transfer["source"] in ("rollouts", "teacher"):
        writing = writing_of(transfer["rollouts"], prepared)
        strayed = {
            name: on_own_text(prepared, lessons.taught.fixed, [trained(name, seed) for seed in arm.seeds], writing)
            for name, arm in arms.items()
        }
    kind = Masked if prepared.task == "masked" else Language
    return kind(
        **common,
        documents=test.names,
        sizes=test.sizes,
        told={name: arm.logits_test for name, arm in arms.items()},
        numbers={name: arm.seeds for name, arm in arms.items()},
        teacher_told=test.heard(lessons.taught.fixed) if own is None else _in_own_tokens(own, test),
        trivial_told=test.trivial(class_counts(prepared)),
        agreement={name: np.array([one.same / one.positions for one in found]) for name, found in alike.items()},
        kl_nats={name: np.array([one.kl / one.positions for one in found]) for name, found in alike.items()},
        compared=alike["distilled"][0].positions if alike else 0,
        own_kl={name: np.array([one.kl / max(one.positions, 1) for one in found]) for name, found in strayed.items()},
        own_tokens=sum(one.positions for found in strayed.values() for one in found),
        drafts=drafts,
    )


def _in_own_tokens(own: Own, test: Documents) -> np.ndarray:
    """(D, K) a teacher's tallies over its own tokens; of documents of which it reads more or fewer bytes, for as many as the student."""
    theirs = Documents(own.data, test.which)
    told = theirs.heard(own.teacher)
    return told * (test.sizes / np.maximum(theirs.sizes, 1))[:, None]


def _similar(lessons: Lessons, arms: Mapping[str, ArmResult], shipped: int, common: Mapping[str, Any]) -> Facts:
    prepared = lessons.data
    judged = Judged(prepared, prepared.test, "test")
    vectors = lessons.said(arms["distilled"], shipped)["test"].row_logits().numpy()
    return Embedding(
        **common,
        sentences=np.array([[judged.texts[first], judged.texts[second]] for first, second in judged.rows], dtype=object).reshape(-1, 2),
        scores=judged.scores,
        said={name: judged.similarities(arm.logits_test) for name, arm in arms.items()},
        numbers={name: arm.seeds for name, arm in arms.items()},
        teacher_said=judged.similarities(vectors),
        overlap_said=similarity.word_overlap(judged.texts, judged.rows),
        hard=similarity.longest(judged.texts, judged.rows, LONG),
        hard_name="the quarter of pairs with the longest sentences",
        widths={"teacher": vectors.shape[1], "student": arms["distilled"].logits_test.shape[2]},
    )


def spoken(knowledge: Knowledge, classes: int) -> np.ndarray:
    """(n, C) log-probabilities at T = 1; of top-k rows the mass of the rest is spread evenly over the classes that were not kept."""
    return heard(knowledge, classes)[0].astype(np.float32)


def shipped_seed(tree: Mapping[str, Any], arm: ArmResult) -> int:
    """Position of the seed that ships: the best on validation, the first where there is none. The test set has no say."""
    from understudy.evaluation.metrics import higher_is_better

    values = [value for value in arm.best if value is not None]
    if len(values) < len(arm.best):
        return 0
    return int(np.argmax(values) if higher_is_better(tree["metric"]) else np.argmin(values))


def trained_module(tree: Mapping[str, Any], prepared: Prepared, given: Given, folder: RunFolder, arm: str, seed: int) -> nn.Module:
    """The student of an arm and a seed, in eval mode."""
    module = finished(fresh_student(tree, prepared, given, seed))
    load_weights(module, folder.arm(arm, seed) / "student.safetensors")
    return module.eval()


def shipped_module(tree: Mapping[str, Any], prepared: Prepared, given: Given, folder: RunFolder, seed: int) -> nn.Module:
    """The student that ships, in eval mode."""
    return trained_module(tree, prepared, given, folder, "distilled", seed)


def ship(
    tree: Mapping[str, Any], prepared: Prepared, module: nn.Module, folder: RunFolder, seed: int, about: str, place: str = "student",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write `student/` (or another `place`): the shipped seed's weights, everything needed to use them, and its card.

    extra: more of what config.json keeps under "extra".
    """
    portable: Any = getattr(module, "portable", dict)
    model = complete(tree["student"]["model"], prepared) | portable()
    if model.get("arch") == GIVEN:
        model = {"arch": None, "class": type(module).__name__}
    vectors = width_of(module, prepared.rows.inputs(prepared.test[:2])) if prepared.task == "embedding" else None
    read, beside = prepared.preprocess, getattr(module, "beside", None)
    files = read.files if isinstance(read, Text | Passages) else {}
    if isinstance(read, Text) and beside is not None:
        files |= beside(read.length)
    exits = folder.arm("distilled", seed) / EXITS
    if exits.exists():
        atomic.write_bytes(folder.path / place / EXITS, exits.read_bytes())
    return artefact.save(
        folder.path / place,
        module,
        model=model,
        shape=prepared.shape,
        classes=() if vectors is not None else prepared.classes,
        preprocess=prepared.preprocess.to_dict(),
        card=about,
        extra={"run": tree["name"], "seed": seed, "metric": tree["metric"], "recipe": digest(tree), **(extra or {})},
        files=files,
        vectors=vectors,
    )


def exporters(tree: Mapping[str, Any]) -> list[Format]:
    """Those of the recipe, with their options."""
    entries = [(entry["kind"], {key: value for key, value in entry.items() if key != "kind"}) for entry in tree["export"]]
    return [kinds.configure("export", kind, options) for kind, options in entries]


def refuse_exports(tree: Mapping[str, Any], prepared: Prepared) -> None:
    """RecipeError for an exporter whose packages are not installed, or that can't hold such a student."""
    model = tree["student"]["model"]
    for exporter in exporters(tree):
        exporter.refuse(prepared.task, model if isinstance(model, Mapping) else {}, prepared.preprocess)


def probe_of(prepared: Prepared, held_out: Tensor | None = None) -> Probe:
    """Test rows (or other rows that no student has seen) in an order of their own: a data set's may be that of its classes."""
    test = shuffled(prepared.test if held_out is None else held_out)[: PROBED_TEXTS if prepared.generative else PROBED]
    told = prepared.task == "classification"
    return Probe(
        prepared.rows.stored[test].numpy(),
        prepared.rows.labels[test].numpy() if told else None,
        lambda: prepared.rows.stored[calibration_rows(prepared)].numpy(),
    )


def calibration_rows(prepared: Prepared, most: int = CALIBRATED) -> Tensor:
    """Training rows that a format may look at."""
    return shuffled(prepared.distilled)[:most]


def shuffled(rows: Tensor) -> Tensor:
    """These rows in an order that is the same for every model: theirs may be that of their classes."""
    return rows[torch.randperm(len(rows), generator=randomness.generator("export", "probe"))]


def export(
    tree: Mapping[str, Any], prepared: Prepared, module: nn.Module, folder: RunFolder, on_event: OnEvent, aware: nn.Module | None = None
) -> list[dict[str, Any]]:
    """A row an artefact of the recipe, each compared with the student on held-out rows; one that answers differently is laid aside, and its
    row says why, under "failed". aware: the student in `aware/`, which formats of fewer bits are made of."""
    rows = []
    probe, formats = probe_of(prepared), exporters(tree)
    for index, exporter in enumerate(formats):
        on_event(Event("export", "progress", exporter.kind, index / len(formats)))
        place, source = ("aware", aware) if exporter.rounds and aware is not None else ("student", module)
        try:
            found = exporter.export(folder.path / place, folder.path / "exports", probe, source)
        except Mismatch as error:
            found = {"path": error.folder or folder.path, "failed": str(error), "parity": error.parity, **error.about}
        except UnderstudyError as error:  # what could only be known once the student was there is no reason to lose its report
            found = {"path": folder.path, "failed": str(error), "parity": {}}
        made_of = {"made_of": place} if source is aware else {}
        rows.append({"format": exporter.kind, **made_of, **found, "path": os.path.relpath(found["path"], folder.path)})
    return rows


def tell_exports(tree: Mapping[str, Any], folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Give the artefacts that say how good they are the finished card and figures; they were checked before there were any."""
    for exporter in exporters(tree):
        exporter.told(folder.path / "exports", summary)
    card = (folder.path / "student" / artefact.CARD).read_bytes()
    for copy in (folder.path / "exports").glob(f"*/{artefact.CARD}"):
        atomic.write_bytes(copy, card)


def latency_of(tree: Mapping[str, Any], lessons: Lessons, student: nn.Module, hardware: str, rounds: int = 30) -> Latency | None:
    """Teacher and student on one example at a time, in turns, as torch runs them here, up to the answers of all positions that count; None
    where the teacher only is a store, or was a companion of the student's."""
    prepared, taught = lessons.data, lessons.taught
    if taught.header is not None or lessons.teacher is None:
        return None
    row = prepared.test[:1]
    batch = prepared.rows.batch(row)
    teacher, asked = (taught.fixed, batch) if taught.own is None else (taught.own.teacher, taught.own.data.rows.batch(row))
    calls = (("teacher", lambda: teacher.teach(asked).row_logits()), ("student", lambda: rows_of(answer(student, batch))))
    times: dict[str, list[float]] = {"teacher": [], "student": []}
    with torch.inference_mode():
        for index in range(rounds + 3):
            for name, call in calls:
                begun = time.perf_counter()
                call()
                if index >= 3:
                    times[name].append(time.perf_counter() - begun)
    conditions = f"batch 1, torch eager float32, {torch.get_num_threads()} thread(s), {hardware}"
    return Latency(times["teacher"], times["student"], conditions, rates_of(tree, lessons, student))


def rows_of(said: Tensor | Hidden) -> Tensor:
    """A model's answers, computed where only the states before them were given."""
    return said.logits() if isinstance(said, Hidden) else said


def rates_of(tree: Mapping[str, Any], lessons: Lessons, student: nn.Module) -> dict[str, float]:
    """Of vectors of sentences, how many texts a second teacher and student read and answer about: the tokenizer's time is in it.

    Test sentences by their length, READ_AT_ONCE together, the best of three rounds of each model, in turns.
    """
    taught = lessons.taught
    if lessons.data.task != "embedding" or not taught.modules:
        return {}
    raw = lessons.data.examples.raw
    assert isinstance(raw, np.ndarray)
    texts = sorted(raw[lessons.data.test[:RATED].numpy()].tolist(), key=len)
    readers = {"teacher": lessons.data.read_by_teacher(tree["teacher"][0]).preprocess, "student": lessons.data.preprocess}
    modules, best = {"teacher": taught.modules[0], "student": student}, {"teacher": math.inf, "student": math.inf}
    with torch.inference_mode():
        for _ in range(3):
            for name, read in readers.items():
                begun = time.perf_counter()
                for start in range(0, len(texts), READ_AT_ONCE):
                    modules[name](torch.from_numpy(read.normalise(read.encode(texts[start : start + READ_AT_ONCE]))))
                best[name] = min(best[name], time.perf_counter() - begun)
    return {name: len(texts) / seconds for name, seconds in best.items()}


def size_of_student(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> Size:
    """Parameters, bytes and multiply-accumulates of the student."""
    return size_of(finished(fresh_student(tree, prepared, given, 0)), prepared.example())


def write_report(folder: RunFolder, summary: Mapping[str, Any], details: Mapping[str, Any]) -> Path:
    """summary.json, details.json, bench.json and report.html; `rerender` makes the page again from the first three.

    What `understudy bench` measured of this very student stays.
    """
    atomic.write_json(folder.path / "details.json", details)
    drafts = {"draft": details["draft"]} if details.get("draft") else {}
    measured = measured_of(folder.path, student_of(details))
    kept = {"measured": measured} if measured else {}
    atomic.write_json(folder.path / "bench.json", {"schema": 1, "latency": details["latency"], **drafts, **kept})
    atomic.write_text(folder.path / "report.html", html.render(dict(summary), dict(details), measured))
    atomic.write_json(folder.path / "summary.json", summary)
    return folder.path / "report.html"


def student_of(details: Mapping[str, Any]) -> str:
    """The fingerprint of the shipped student's weights."""
    return str(details["provenance"].get("models", {}).get("student", ""))


def measured_of(run: Path, student: str) -> dict[str, Any] | None:
    """What `understudy bench` found of this student, as it stands in bench.json; None where nobody measured it."""
    file = run / "bench.json"
    found = json.loads(file.read_text(encoding="utf-8")).get("measured") if file.is_file() else None
    return found if found and found["student"] == student else None


def rerender(run: Path) -> Path:
    """The page of a finished run, made again from its summary.json, details.json and bench.json."""
    try:
        summary, details = (json.loads((run / name).read_text(encoding="utf-8")) for name in ("summary.json", "details.json"))
    except (OSError, ValueError) as error:
        raise DataError(
            four_parts(
                f"{run} has no finished report",
                got=str(error),
                expected="summary.json and details.json",
                otherwise="There would be nothing to show",
                do="Run its recipe to the end first",
            )
        ) from None
    atomic.write_text(run / "report.html", html.render(summary, details, measured_of(run, student_of(details))))
    return run / "report.html"
