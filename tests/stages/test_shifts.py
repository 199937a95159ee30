"""stages/shifts.py: who is asked again about which rows, and what is refused before anything is trained."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from understudy.collate import Rows
from understudy.data import from_arrays
from understudy.errors import RecipeError
from understudy.records import Batch, Knowledge
from understudy.stages import shifts
from understudy.stages.prepare import Given, prepare
from understudy.teachers import ensemble, local, stored, weighted


@pytest.fixture
def prepared(toy):
    return prepare(toy.recipe(), Given())


def test_rows_are_spread_over_classes_and_smaller_choices_are_parts_of_larger_ones(prepared):
    few, more = (shifts.chosen(prepared, most) for most in (12, 30))
    labels = prepared.rows.labels
    assert len(few) == 12 and (labels[few].bincount() - 4).abs().max() <= 1
    assert set(few.tolist()) <= set(more.tolist()) <= set(prepared.test.tolist()) and few.tolist() == sorted(few.tolist())
    assert shifts.chosen(prepared, 1000).tolist() == prepared.test.tolist()
    assert torch.equal(few, shifts.chosen(prepared, 12))


class LooksUp:
    """An own teacher that goes by a row's id."""

    provides, fingerprint = frozenset({"logits"}), "0"

    def teach(self, batch: Batch, outputs: object = None) -> Knowledge:
        return Knowledge(logits=batch.ids[:, None].float())


@dataclasses.dataclass
class Lesson:
    """As much of `Lessons` as is read."""

    fixed: object
    teacher: object

    @property
    def taught(self) -> Lesson:
        return self


def test_a_teacher_that_looks_answers_up_is_not_asked_about_rows_that_it_cannot_see(toy):
    """Prevents: a store or a lookup gives the plain row's answer to the spoilt one, and the teacher looks robust as nobody is."""
    tree = {"teacher": [{"kind": "local"}, {"kind": "local"}]}
    computes = local.Teacher(nn.Linear(2, 2), "1")
    recorded = object.__new__(stored.Teacher)
    recorded.provides, recorded.fingerprint = frozenset({"logits"}), "2"
    for silent in (LooksUp(), recorded, ensemble.Teacher([computes, recorded])):
        found, why = shifts.asked_of(tree, Lesson(silent, silent))
        assert found is None and "spoilt rows were never asked about" in why
    assert shifts.asked_of(tree, Lesson(computes, computes)) == (computes, "")
    assert shifts.asked_of(tree, Lesson(None, None))[1] == "it learnt along with the student"


def test_learnt_weights_of_members_are_kept(toy):
    members = ensemble.Teacher([local.Teacher(nn.Linear(2, 2), str(at)) for at in range(2)])
    tree = {"teacher": [{"kind": "local"}, {"kind": "local"}]}
    found, _ = shifts.asked_of(tree, Lesson(members, weighted.Teacher(recorded_as(members), torch.tensor([0.9, 0.1]))))
    assert isinstance(found, weighted.Teacher) and found.ensemble is members and found.weights.tolist() == pytest.approx([0.9, 0.1])
    per_example = weighted.Teacher(recorded_as(members), None)  # weighs by labels, which no one has where the student is used
    assert shifts.asked_of(tree, Lesson(members, per_example))[0] is members


def recorded_as(teacher):
    found = object.__new__(stored.Teacher)
    found.provides, found.fingerprint = teacher.provides, teacher.fingerprint
    return found


class Counts(nn.Module):
    """How many tokens of each kind a text has."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(tokens, 5).sum(1).float()


def test_a_teacher_with_its_own_tokens_reads_the_spoilt_texts():
    """Prevents: it goes on looking the plain texts up by their numbers."""

    def rows(tokens: list[list[int]]) -> Rows:
        stored_ = torch.tensor(tokens, dtype=torch.int32)
        return Rows(stored_, torch.zeros(len(tokens)).long(), torch.arange(len(tokens)), torch.ones(1), torch.zeros(1), pad=0)

    plain, spoilt = rows([[1, 2], [3, 4], [1, 1]]), rows([[4, 4]])
    teacher = local.Teacher(Counts(), "1", reads=plain)
    other = teacher.reading(spoilt)
    batch = spoilt.batch(torch.tensor([0]))
    assert other.teach(batch).logits.tolist() == [[0, 0, 0, 0, 2]] and teacher.teach(batch).logits.tolist() == [[0, 1, 1, 0, 0]]


@pytest.mark.parametrize("row, asked", [
    ({"format": "onnx"}, False), ({"format": "safetensors"}, False), ({"format": "onnx_int8"}, True),
    ({"format": "onnx_int8", "failed": "another class in every second row"}, False)])  # fmt: skip
def test_only_artefacts_that_may_answer_otherwise_are_asked(row, asked):
    assert shifts.quantised(row) is asked


@pytest.mark.parametrize("section, message", [
    ("{shifts: [nois]}", 'unknown shift of inputs of kind vector.*Did you mean "noise"'), ("{shifts: [blur]}", "expected one of noise"),
    ("{rows: 2}", None)])  # fmt: skip
def test_shifts_of_other_kinds_of_input_are_refused_before_training(toy, section, message):
    wanted = toy.recipe(f"robustness={section}")
    tree = {"robustness": wanted.robustness.model_dump(), "data": {"kind": "builtin"}}
    if message is None:
        shifts.refuse(tree, prepare(wanted, Given()))
    else:
        with pytest.raises(RecipeError, match=message):
            toy.run(f"robustness={section}")
        assert not toy.trained()


def test_rows_of_one_class_are_refused(toy):
    """Ranking metrics, and most others, are not defined there."""
    labels = [0] * 200 + [1] * 5
    given = Given(examples=from_arrays(np.random.default_rng(0).normal(size=(205, 3)), labels))
    with pytest.raises(RecipeError, match="rows of two classes"):
        toy.run("data={kind: given, split: {validation: 0.1, test: 0.3}}", "robustness={rows: 2}", given=given)
    assert not toy.trained()


@pytest.mark.parametrize("value", ["[0]", "[6]", "[]", "[1.5]", "[true]", "3"])
def test_severities_outside_one_to_five_are_refused(toy, value):
    with pytest.raises(RecipeError, match=r"robustness\.severities"):
        toy.recipe(f"robustness={{severities: {value}}}")


@pytest.mark.parametrize("gate, message", [
    ("min_shifted_kept", "no robustness"), ("max_shifted_ece", "no robustness"),
    ("max_group_gap_increase", r"no data\.sensitive")])  # fmt: skip
def test_gates_on_what_is_not_measured_are_refused(toy, gate, message):
    """Prevents: hours of training whose gate can't be met."""
    with pytest.raises(RecipeError, match=message):
        toy.recipe(f"gates={{{gate}: 0.5}}")
    if "shifted" in gate:
        assert toy.recipe(f"gates={{{gate}: 0.5}}", "robustness={}").gates == {gate: 0.5}
