"""Subjects for the self-test of layers and companies: real digits, a small network that was taught them, and a smaller one to teach."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from understudy import kinds, randomness
from understudy.collate import Rows
from understudy.objectives.labels import CrossEntropy
from understudy.records import Shapes
from understudy.selftest.subject import Subject
from understudy.students import taps
from understudy.teachers import local
from understudy.training.step import student_taps, teacher_taps

ROWS, CLASSES = 400, 10


def cnn(width: int, seed: int) -> nn.Module:
    with randomness.seeded(seed):
        return kinds.configure("models", "cnn", {"width": width}).build((1, 8, 8), CLASSES)


class World:
    """The digits, a teacher that knows them, and the subject of a self-test about any objectives."""

    cnn = staticmethod(cnn)

    def __init__(self) -> None:
        pixels, labels = load_digits(return_X_y=True)
        stored = torch.from_numpy(pixels[:ROWS].reshape(-1, 1, 8, 8) * 15).to(torch.uint8)
        labels = torch.from_numpy(labels[:ROWS].astype(np.int64))
        self.rows = Rows(stored, labels, torch.arange(ROWS), torch.tensor(1 / 64), torch.tensor(-1.5))
        self.training, self.probe = torch.arange(250), torch.arange(250, ROWS)
        self.module = cnn(8, 1)
        optimizer = torch.optim.Adam(self.module.parameters(), 1e-2)
        for step in range(60):
            batch = torch.arange(64) * 3 % 250 + step % 3
            nn.functional.cross_entropy(self.module(self.rows.inputs(batch)), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
        self.module.eval().requires_grad_(False)

    def shapes(self, objectives, student, teacher=None) -> Shapes:
        inputs = self.rows.inputs(torch.arange(2))
        mine, theirs = student_taps(objectives), teacher_taps(objectives)
        return Shapes(CLASSES, ROWS, taps.shapes(student, mine, inputs) if mine else {},
                      taps.shapes(teacher, theirs, inputs) if theirs and teacher is not None else {})

    def auto(self, objective, student=None, teacher=None):
        """The objective with its layers found, as a recipe's `layers: auto` is."""
        inputs = self.rows.inputs(torch.arange(2))
        seen = [taps.listing(one, inputs) for one in (student or cnn(4, 2), teacher or self.module)]
        return dataclasses.replace(objective, layers=taps.resolve(objective.auto, *seen))

    def subject(self, objectives, *, student=lambda: cnn(4, 2), teacher=None, module=None, shapes=None, **more) -> Subject:
        """The trained network teaches; its tapped layers are given as well."""
        if teacher is None:
            module = copy.deepcopy(module or self.module)
            teacher = local.Teacher(module, "digits", taps=teacher_taps(objectives))
        fields = {
            "classes": tuple("0123456789"), "outputs": CLASSES, "teacher": teacher, "live": teacher,
            "modules": () if module is None else (module,),
            "teacher_classes": None, "rows": self.rows, "probe": self.probe, "trained_on_probe": False, "views": None, "view": 0,
            "stated": {}, "class_counts": np.bincount(self.rows.labels[self.training].numpy(), minlength=CLASSES),
            "objectives": objectives, "student": student, "batch_size": 64, "test_rows": 100, "duplicate_rows": 0,
            "provides": teacher.provides, "shapes": shapes or self.shapes(objectives, student(), module), "training": self.training,
        }
        return Subject(**(fields | more))


@pytest.fixture(scope="session")
def world() -> World:
    return World()


@pytest.fixture
def beside_labels(world):
    """{objective of that name with layers found, labels}: what a recipe would have."""
    return lambda name, **options: [world.auto(kinds.configure("objectives", name, options)), CrossEntropy()]
