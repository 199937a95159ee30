"""Results -> facts: what a report is made from, of every task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from understudy import pictures
from understudy.evaluation import similarity
from understudy.records import Knowledge
from understudy.report.alike import TEMPERATURES
from understudy.report.facts import Arm, Classification, Drafts, Embedding, Facts, Language, Latency, Masked, Shifted, Size
from understudy.selftest.subject import heard
from understudy.stages.arms import ArmResult
from understudy.stages.common import class_counts
from understudy.stages.finish import sentence_of, shipped_seed
from understudy.stages.lessons import Lessons
from understudy.stages.tasks.classification import class_weights
from understudy.stages.tasks.embedding import Judged
from understudy.stages.tasks.language import Documents, likeness, on_own_text
from understudy.stages.taught import Own
from understudy.stages.writing import writing_of
from understudy.training.numerics import Numerics

LONG = 0.25
"""The share of test pairs that stands beside the average: those with the longest sentences."""


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
        "notes": [*lessons.data.notes, *lessons.taught.notes, *lessons.notes, *(note for arm in arms.values() for note in arm.notes),
                  *(said for row in exports for said in sentence_of(row))],
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
