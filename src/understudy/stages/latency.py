"""How long teacher and student take for one example, and how many texts a second, side by side in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from understudy.answer import answer
from understudy.records import Hidden
from understudy.report.facts import Latency
from understudy.stages.lessons import Lessons

RATED, READ_AT_ONCE = 256, 32
"""Test sentences on which texts a second are measured, and how many a model gets together."""


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
