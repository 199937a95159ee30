"""One battery over every objective that can be named: what each class declares is tested, whoever adds it.

A class is tested with its default fields, so every field needs a default; `layers` are filled in. A property that a formula does not have
is not declared. A test that can't be asked of a class is waived in `WAIVED`, with the reason.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import math
import re
import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import kinds
from understudy.errors import DataError, RecipeError
from understudy.objective import Auto, LayerObjective, PlainObjective, Schedule, paired, value_at
from understudy.records import UNKNOWN, Batch, Knowledge, Shapes, StudentOutput, TopKRows

CLASSES = {name: kinds.find("objectives", name) for name in kinds.objective_names()}
NAMES = list(CLASSES)
B, C = 8, 5
PROPERTIES = {"zero_at_equality", "non_negative", "shift_invariant", "class_permutation", "scale_invariant"}

DRAWN = "every example and step has a draw of its own, which goes by the place in the batch"
WAIVED = {
    ("features.MGD", "order"): DRAWN,
    ("features.MGD", "split"): DRAWN,
    ("relations.CRD", "unlabelled"): "labels choose the negatives: an example without one counts too, with others",
    ("exits.DeepExits", "unlabelled"): "an example without a label counts with the parts that need none",
    ("logits.Subsets", "unlabelled"): "a label takes away the members that don't know it: without one all have a say",
    ("policy.ReverseKLAdvantage", "differences"): "the gradient of an expectation beside the value of one draw: test_policy.py has both",
    ("policy.ReverseKLAdvantage", "values"): "a baseline changes how far gradients scatter, and no value",
    ("logits.Subsets", "mean"): "it follows each member by itself, on the classes that this one knows, rather than their mean",
}
"""{(objective, test): why it can't be asked}."""


def parts(test="", keep=lambda cls: True):
    """Every class that passes `keep` and for which this test is not waived."""
    return pytest.mark.parametrize("name", [name for name in NAMES if (name, test) not in WAIVED and keep(CLASSES[name])])


def having(claim):
    return parts(keep=lambda cls: claim in cls.properties)


def granular(granularity):
    return parts("split", keep=lambda cls: cls.granularity == granularity)


def is_plain(cls):
    return issubclass(cls, PlainObjective)


every = parts()
plain = parts(keep=is_plain)
taught = parts(keep=lambda cls: cls.needs)
on_logits = parts(keep=lambda cls: "logits" in cls.needs)
on_layers = parts(keep=lambda cls: issubclass(cls, LayerObjective))


@functools.cache
def default(name):
    """The class with its default fields, and layers where it has such a field."""
    objective = kinds.configure("objectives", name, {})
    if isinstance(objective, LayerObjective) and "attention" in objective.auto:
        return dataclasses.replace(objective, layers={"one.query": "first.query", "two.query": "second.query"}, heads=2)
    if isinstance(objective, LayerObjective):
        return dataclasses.replace(objective, layers={"one": "first", "two": "second"})
    if hasattr(objective, "layers"):
        return dataclasses.replace(objective, layers=("one", "two"), embedding="end")
    return objective


# Layers of other widths and, where they have any, other positions, so that every projection is in use.
MAPS = Shapes(C, 20, {"one": (3, 4, 4), "two": (4, 2, 2)}, {"first": (4, 3, 4), "second": (5, 3, 3)})
VECTORS = Shapes(C, 20, {"one": (6,), "two": (3,)}, {"first": (5,), "second": (4,)})
TOKENS = Shapes(C, 20, {"one": (4, 6), "two": (4, 6)}, {"first": (4, 6), "second": (4, 6)})
BLOCKS = Shapes(C, 20, {"one": (4, 6), "two": (4, 3)}, {"first": (4, 5), "second": (4, 4)})
ATTENTION = Shapes(C, 20, *({f"{tap}.{part}": (4, width) for tap in taps for part in ("query", "key", "value")}
                            for taps, width in ((("one", "two"), 6), (("first", "second"), 8))))
EXITS = Shapes(C, 20, {"one": (3, 4, 4), "two": (6,), "end": (16,)})  # wide enough that no example finds all units of an exit dead


def shapes_of(name, alike=False):
    """Shapes for the term of this class; alike: the student's layers have the teacher's shapes."""
    cls = CLASSES[name]
    if not issubclass(cls, LayerObjective):
        return EXITS if hasattr(cls, "layers") else Shapes(C, 20)
    found = {"vectors": VECTORS, "blocks": BLOCKS, "last block": TOKENS, "inner blocks": TOKENS, "attention": ATTENTION,
             "last attention": ATTENTION}.get(cls.auto, MAPS)
    return dataclasses.replace(found, student=dict(zip(found.student, found.teacher.values(), strict=True))) if alike else found


def drawn(seed, *shape, scale=2.0, dtype=torch.float32):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale).to(dtype)


def logits_of(seed, rows=B, scale=2.0, dtype=torch.float32):
    return drawn(seed, rows, C, scale=scale, dtype=dtype)


LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 3, 3])
KNOWN = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], dtype=torch.bool)
"""Which classes the three members of a teacher of `logits.Subsets` know."""


def student_of(name, seed, rows=B, alike=False, **kwargs):
    """{"logits" or tap: tensor}: all that the term reads of a student."""
    shapes = shapes_of(name, alike).student
    return {"logits": logits_of(seed, rows, **kwargs)} | {
        tap: drawn(seed + 100 + place, rows, *shape, **kwargs) for place, (tap, shape) in enumerate(shapes.items())}


def teacher_of(name, seed, rows=B, **kwargs):
    """{"logits" or tap: tensor}: all that the term reads of a teacher."""
    cls, shapes = CLASSES[name], shapes_of(name).teacher
    if issubclass(cls, LayerObjective):
        return {tap: drawn(seed + 200 + place, rows, *shape, **kwargs) for place, (tap, shape) in enumerate(shapes.items())}
    if name == "logits.Subsets":
        return {"logits": torch.where(KNOWN, drawn(seed, rows, 3, C, **kwargs), UNKNOWN)}
    return {"logits": logits_of(seed, rows, **kwargs)}


def agreeing(name, student):
    """The teacher that says what this student, made with alike=True, says."""
    if issubclass(CLASSES[name], LayerObjective):
        return dict(zip(shapes_of(name).teacher, (student[tap] for tap in shapes_of(name).student), strict=True))
    rows = student["logits"]
    return {"logits": torch.where(KNOWN, rows[:, None], UNKNOWN) if name == "logits.Subsets" else rows.clone()}


def each(tensors, change):
    """The same change to all layers; where there are none, to the logits."""
    return {tap: tensor if tap == "logits" and len(tensors) > 1 else change(tensor) for tap, tensor in tensors.items()}


def leaves(tensors):
    return {tap: tensor.clone().requires_grad_() for tap, tensor in tensors.items()}


def along(tensor, rows):
    """A vector of rows beside a tensor (B, ...)."""
    return rows.reshape(-1, *[1] * (tensor.ndim - 1)).to(tensor.dtype)


def read(name):
    """Names of the student's tensors that shall get a gradient."""
    return tuple(shapes_of(name).student)[: 2] or ("logits",)


def batch_of(labels=LABELS, mask=None, ids=None):
    ids = torch.arange(len(labels)) if ids is None else ids
    drawn = {"drawn": torch.full((len(labels),), 2), "drawn_log_probs": torch.full((len(labels),), -4.0)}
    return Batch(ids=ids, view=0, inputs=torch.zeros(len(labels), 1), labels=labels, mask=mask, extras=drawn,
                 documents=torch.zeros(len(labels), 4, dtype=torch.int64))


def output_of(student):
    return StudentOutput(student["logits"], {tap: tensor for tap, tensor in student.items() if tap != "logits"})


def knowledge_of(teacher):
    return None if teacher is None else Knowledge(
        logits=teacher.get("logits"), features={tap: tensor for tap, tensor in teacher.items() if tap != "logits"})


def built(name, objective=None, alike=False, seed=0):
    """The term, its parameters drawn from this seed."""
    torch.manual_seed(seed)
    return (default(name) if objective is None else objective).build(shapes_of(name, alike))


def asked(module, student, teacher, labels=LABELS, mask=None, ids=None, progress=0.0, seed=7):
    """(sum, count): every call draws the same numbers, as the loop has it."""
    torch.manual_seed(seed)
    total, count = module(output_of(student), knowledge_of(teacher), batch_of(labels, mask, ids), progress)
    return total, float(count)


def term(name, student, teacher, labels=LABELS, mask=None, ids=None, progress=0.0, objective=None, alike=False):
    """(sum, count) of a new term; it is in the precision of its parameters, float32."""
    return asked(built(name, objective, alike), student, teacher, labels, mask, ids, progress)


def values(objective, student, teacher, labels=LABELS, progress=0.0):
    """(B,) values of an objective that is a formula of logits."""
    return objective.values(StudentOutput(student), Knowledge(logits=teacher), batch_of(labels), progress)[0]


def close(a, b, tolerance=1e-5):
    """Relative to the size of the larger one: values of different objectives differ by orders of magnitude."""
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance * max(1.0, float(b.detach().abs().max())))


def test_all_families_are_found():
    assert set(NAMES) >= {
        "labels.CrossEntropy", "logits.SoftTargets", "logits.MSE", "logits.Decoupled", "logits.Standardized", "logits.DIST",
        "logits.CurriculumTemperature", "logits.Subsets", "features.Hint", "features.ReviewKD", "relations.CRD", "exits.DeepExits"}


def test_waived_tests_are_of_classes_that_are_there():
    assert {name for name, _ in WAIVED} <= set(NAMES)


@every
def test_declarations_are_known_words(name):
    """A misspelt property is a property that nobody tests."""
    cls = CLASSES[name]
    assert cls.properties <= PROPERTIES
    assert cls.needs <= ({"features"} if issubclass(cls, LayerObjective) else {"logits", "topk", "own"})
    assert cls.granularity in ("example", "batch") and isinstance(cls.of_examples, bool)
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen
    if issubclass(cls, LayerObjective):
        assert cls.auto in typing.get_args(Auto)


@every
def test_docstring_has_the_sections_that_the_reference_page_is_made_of(name):
    text = CLASSES[name].__doc__
    for section in ("Formula", "Needs:", "Inputs:", "Args:", "Raises:", "Works best when:", "Relations:", "Reference:", "Example:"):
        assert section in text, f"{name} has no section {section}"
    assert re.search(r"\bDeviations?: ", text), f"{name} doesn't say where it departs from its source"
    for field in dataclasses.fields(CLASSES[name]):
        assert re.search(rf"^        {field.name}: ", text, re.M), f"{name} does not describe its field {field.name}"


@every
def test_batch_granularity_is_explained(name):
    cls = CLASSES[name]
    assert ("Granularity: batch" in cls.__doc__) == (cls.granularity == "batch")


@every
def test_value_is_float32_whatever_comes_in(name):
    """Values of 16 bits lose the small terms of a sum, and overflow at 65,504."""
    for mine, theirs in ((torch.bfloat16, torch.float32), (torch.float16, torch.float16), (torch.float32, torch.float32)):
        total, _ = term(name, student_of(name, 0, dtype=mine), teacher_of(name, 1, dtype=theirs))
        assert total.dtype == torch.float32 and total.ndim == 0


@plain
def test_values_are_one_float32_number_an_example(name):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = values(default(name), logits_of(0, dtype=dtype), logits_of(1))
        assert found.shape == (B,) and found.dtype == torch.float32


@every
def test_something_is_learnt_from_every_example_and_every_layer(name):
    """A term that is constant trains on nothing at a plausible loss."""
    student = leaves(student_of(name, 0))
    total, count = term(name, student, teacher_of(name, 1))
    total.backward()
    assert count == B
    assert total.abs().item() > 1e-3
    for tap in read(name):
        assert (student[tap].grad.flatten(1).abs().sum(1) > 1e-6).all(), tap


@having("zero_at_equality")
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 10))
def test_zero_at_equality(name, seed, scale):
    student = leaves(student_of(name, seed, alike=True, scale=scale))
    total, count = term(name, student, agreeing(name, student), alike=True)
    assert abs(total.item()) < 2e-5 * count
    total.backward()
    for tap in read(name):
        assert student[tap].grad.abs().max() < 1e-3  # and it is a minimum


@having("non_negative")
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 30), nearness=st.floats(0, 1))
def test_never_negative(name, seed, scale, nearness):
    start, other = (student_of(name, seed + place, alike=True, scale=scale) for place in (0, 1))
    student = {tap: torch.lerp(start[tap], other[tap], nearness) for tap in start}
    objective, teacher = default(name), agreeing(name, start)
    if isinstance(objective, PlainObjective):
        assert values(objective, student["logits"], teacher["logits"]).min() > -2e-5
    total, count = term(name, student, teacher, alike=True)
    assert total.item() > -2e-5 * count


def changed_alike(name, mine, theirs):
    """Asserts that the term is unchanged by a change of the student, and by one of the teacher: dictionaries to dictionaries."""
    student, teacher = student_of(name, 0, alike=True), teacher_of(name, 1)
    expected = term(name, student, teacher, alike=True)[0]
    assert expected.abs() > 1e-3
    assert close(term(name, mine(student), teacher, alike=True)[0], expected)
    if CLASSES[name].needs:
        assert close(term(name, student, theirs(teacher), alike=True)[0], expected)


@having("shift_invariant")
def test_adding_a_constant_to_all_entries_of_an_example_changes_nothing(name):
    shift = torch.linspace(-7, 9, B)
    changed_alike(name, lambda one: each(one, lambda x: x + along(x, shift)), lambda one: each(one, lambda x: x - along(x, shift)))


@having("scale_invariant")
def test_multiplying_the_entries_of_an_example_changes_nothing(name):
    scale = torch.linspace(0.01, 50, B)
    changed_alike(name, *[lambda one: each(one, lambda x: x * along(x, scale))] * 2)


@having("class_permutation")
def test_renaming_classes_or_channels_in_both_models_changes_nothing(name):
    def renamed(x):
        axis = 1 if x.ndim == 4 else -1
        return x.index_select(axis, torch.randperm(x.shape[axis], generator=torch.Generator().manual_seed(3)))

    labels = torch.argsort(torch.randperm(C, generator=torch.Generator().manual_seed(3)))[LABELS]
    student, teacher = student_of(name, 0, alike=True), teacher_of(name, 1)
    assert close(term(name, each(student, renamed), each(teacher, renamed), labels, alike=True)[0],
                 term(name, student, teacher, alike=True)[0])


@parts("order")
def test_order_of_the_examples_does_not_matter(name):
    order = torch.randperm(B, generator=torch.Generator().manual_seed(2))
    student, teacher = leaves(student_of(name, 0)), teacher_of(name, 1)
    moved = leaves({tap: x.detach()[order] for tap, x in student.items()})
    found = term(name, moved, {tap: x[order] for tap, x in teacher.items()}, LABELS[order], ids=order)[0]
    expected = term(name, student, teacher)[0]
    assert close(found, expected)
    found.backward()
    expected.backward()
    for tap in read(name):
        assert close(moved[tap].grad, student[tap].grad[order])


@plain
def test_term_adds_up_the_values(name):
    """A fused term is a second way to the same number: it has to stay the same."""
    objective, mask = default(name), torch.tensor([True] * 5 + [False] * 3)
    labels = torch.tensor([0, -1, 2, 3, 4, 0, -1, 3])
    for use in (None, mask):
        output, knowledge, batch = StudentOutput(logits_of(0)), knowledge_of(teacher_of(name, 1)), batch_of(labels, use)
        found, counts = objective.values(output, knowledge, batch, 0.0)
        counted = torch.ones(B, dtype=torch.bool) if counts is None else counts
        counted = counted if use is None else counted & use
        total, count = objective.build(Shapes(classes=C, examples=100))(output, knowledge, batch, 0.0)
        assert close(total, found[counted].sum())
        assert float(count) == int(counted.sum())


@every
def test_masked_examples_are_as_if_deleted(name):
    """Padding that leaks into a loss changes it with the batch size, and nobody sees why."""
    keep = torch.tensor([True, False, True, True, False, True, False, True])
    student, teacher = student_of(name, 0), teacher_of(name, 1)
    for tensors, factor in ((student, 300.0), (teacher, -300.0)):
        for x in tensors.values():
            x[~keep] *= factor  # rubbish, but finite
    whole, part = leaves(student), leaves({tap: x[keep] for tap, x in student.items()})
    total, count = term(name, whole, teacher, mask=keep)
    expected, number = term(name, part, {tap: x[keep] for tap, x in teacher.items()}, LABELS[keep], ids=torch.arange(B)[keep])
    assert count == number == int(keep.sum())
    assert close(total, expected)
    total.backward()
    expected.backward()
    for tap in read(name):
        assert close(whole[tap].grad[keep], part[tap].grad)
        assert whole[tap].grad[~keep].abs().max() == 0


@every
def test_masked_examples_leave_no_trace_in_parameters_and_memory(name):
    """Prevents: the value is right, but running means, margins or banks are those of the padding."""
    keep = torch.tensor([True, False, True, True, False, True, False, True])
    found = []
    for teacher, rows, mask in ((teacher_of(name, 1), torch.arange(B), keep), (teacher_of(name, 1), torch.arange(B)[keep], None)):
        module, student = built(name), leaves({tap: x[rows] for tap, x in student_of(name, 0).items()})
        total, _ = asked(module, student, {tap: x[rows] for tap, x in teacher.items()}, LABELS[rows], mask, rows, progress=0.5)
        total.backward()
        after_step(module)
        found.append([*module.buffers(), *(parameter.grad for parameter in module.parameters())])
    for one, other in zip(*found, strict=True):
        assert close(one.double(), other.double(), 1e-4)


@every
def test_batch_with_everything_masked_is_zero_of_zero_with_finite_gradients(name):
    module, student = built(name), leaves(student_of(name, 0))
    with torch.autograd.set_detect_anomaly(True):  # nor may a NaN pass on the way, to be multiplied away at the end
        total, count = asked(module, student, teacher_of(name, 1), mask=torch.zeros(B, dtype=torch.bool))
        total.backward()
    after_step(module)
    assert (total.item(), count) == (0.0, 0.0)
    for tensor in (*(student[tap] for tap in read(name)), *module.parameters()):
        assert tensor.grad is None or tensor.grad.abs().max() == 0
    assert all(torch.isfinite(buffer).all() for buffer in module.buffers())


@parts("unlabelled")
def test_unlabelled_examples_count_wholly_or_not_at_all(name):
    labels = LABELS.clone()
    labels[[1, 4]] = -1
    student, teacher = leaves(student_of(name, 0)), teacher_of(name, 1)
    total, count = term(name, student, teacher, labels)
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(student[tap].grad).all() for tap in read(name))
    if count == B:
        assert close(total, term(name, student_of(name, 0), teacher)[0])
    else:
        keep = labels >= 0
        assert count == int(keep.sum())
        assert close(total, term(name, *({tap: x[keep].detach() for tap, x in one.items()} for one in (student, teacher)), labels[keep])[0])
        assert student["logits"].grad[~keep].abs().max() == 0


@parts(keep=lambda cls: not cls.of_examples)
def test_what_is_not_of_examples_learns_without_labels_and_does_not_know_ids(name):
    """Prevents: on noise and generated inputs, which have no label and whose ids mean nothing, a term is 0 of 0 all along, or takes one
    input for another."""
    found, nobody = [], torch.full((B,), -1)
    for ids in (torch.arange(B), torch.arange(B).flip(0)):
        module = built(name)
        asked(module, student_of(name, 50), teacher_of(name, 51), nobody)
        after_step(module)
        student = leaves(student_of(name, 0))
        total, count = asked(module, student, teacher_of(name, 1), nobody, ids=ids, progress=0.5)
        total.backward()
        assert count == B and all((student[tap].grad.flatten(1).abs().sum(1) > 1e-6).all() for tap in read(name))
        found.append(total)
    assert found[0].equal(found[1])


@parts(keep=lambda cls: cls.of_examples)
def test_what_is_of_examples_needs_their_labels_or_ids(name):
    """Declared without need, an objective would be refused where it could teach."""
    found, nobody = [], torch.full((B,), -1)
    for ids in (torch.arange(B), torch.arange(B).flip(0)):
        module = built(name)
        asked(module, student_of(name, 50), teacher_of(name, 51), nobody)
        after_step(module)
        total, count = asked(module, student_of(name, 0), teacher_of(name, 1), nobody, ids=ids, progress=0.5)
        found.append(total)
    assert count == 0 or not close(found[0], found[1], 1e-4)


@taught
def test_no_gradient_reaches_the_teacher(name):
    student, teacher = leaves(student_of(name, 0)), leaves(teacher_of(name, 1))
    term(name, student, teacher, progress=0.5)[0].backward()
    if isinstance(default(name), PlainObjective):
        values(default(name), student["logits"], teacher["logits"]).sum().backward()
    assert all(tensor.grad is None for tensor in teacher.values())
    assert all(student[tap].grad.abs().max() > 0 for tap in read(name))


def test_the_deepest_exit_is_no_student_of_the_others():
    student = leaves(student_of("exits.DeepExits", 0))
    term("exits.DeepExits", student, None)[0].backward()
    assert student["logits"].grad is None and student["end"].grad is None


@parts("differences")
def test_gradient_agrees_with_finite_differences(name):
    rows = 4
    student, teacher = student_of(name, 0, rows, dtype=torch.float64), teacher_of(name, 1, rows, dtype=torch.float64)
    module, taps = built(name).double(), read(name)
    asked(module, student_of(name, 5, rows, dtype=torch.float64), teacher, LABELS[:rows])
    after_step(module)  # from here on, what a term takes from its first step (the constants of CRD) is as constant as its gradient says

    def value(*tensors):
        return asked(module, student | dict(zip(taps, tensors, strict=True)), teacher, LABELS[:rows])[0]

    assert torch.autograd.gradcheck(value, tuple(student[tap].requires_grad_() for tap in taps))


@every
def test_low_precision_agrees_with_float64(name):
    """The arithmetic is in float32 whatever comes in. Bounds: 2e-5 of the value against the same rounded numbers in float64;
    3 % against unrounded ones, which is what rounding up to 6 to 8 bits of mantissa may do."""
    student, teacher = student_of(name, 0, dtype=torch.float64), teacher_of(name, 1)
    rounded = {tap: x.to(torch.bfloat16) for tap, x in student.items()}
    found = term(name, rounded, teacher)[0].double()
    in_double, theirs = built(name).double(), {tap: x.double() for tap, x in teacher.items()}
    assert close(found, asked(in_double, {tap: x.double() for tap, x in rounded.items()}, theirs)[0], 2e-5)
    exact = asked(built(name).double(), student, theirs)[0]
    assert (found - exact).abs() <= 0.03 * exact.abs()


@plain
def test_low_precision_agrees_with_float64_for_every_example(name):
    objective, student, teacher = default(name), logits_of(0, dtype=torch.float64), logits_of(1)
    rounded = student.to(torch.bfloat16)
    found = values(objective, rounded, teacher).double()
    assert close(found, values(objective, rounded.double(), teacher).double(), 1e-5)
    exact = values(objective, student, teacher).double()
    assert (found - exact).abs().max() <= 0.03 * exact.abs().max()


EXTREMES = torch.tensor([
    [1e4, -1e4, 0, 0, 0], [-1e4, -1e4, -1e4, -1e4, 1e4], [1e4, 1e4, 1e4, 1e4, 1e4], [0, 0, 0, 0, 0],
    [1e4, 9999, 9998, -1e4, 0], [-1e4, 1e4, -1e4, 1e4, -1e4], [1e-4, -1e-4, 0, 0, 0], [30, -30, 3, -3, 0]])


@parts(keep=lambda cls: not issubclass(cls, LayerObjective))
def test_extreme_logits_stay_finite(name):
    clipped = torch.log(torch.softmax(EXTREMES, -1).clamp(min=1e-30))
    for student, teacher in ((EXTREMES, EXTREMES.flip(0)), (EXTREMES, EXTREMES), (EXTREMES, clipped.flip(0)), (logits_of(0), EXTREMES),
                             (torch.zeros(B, C), logits_of(1)), (EXTREMES, torch.zeros(B, C))):
        given = leaves(student_of(name, 0) | {"logits": student})
        total, _ = term(name, given, {"logits": teacher}, progress=0.5)
        total.backward()
        assert torch.isfinite(total) and all(torch.isfinite(given[tap].grad).all() for tap in read(name))


DEGENERATE = {
    "zeros": torch.zeros_like, "equal examples": lambda x: x[:1].expand_as(x), "constant": lambda x: torch.full_like(x, 3.0),
    "large": lambda x: 1e3 * x, "small": lambda x: 1e-6 * x, "active": lambda x: x.clamp(min=0),
    "dead rows": lambda x: x * along(x, torch.arange(len(x)) % 2)}


@parts(keep=lambda cls: bool(getattr(cls, "auto", None)))
def test_degenerate_features_stay_finite(name):
    """Dead layers, collapsed embeddings and batches of one example are met in the first steps of real runs: one NaN ends them."""
    for mine, theirs in [*((one, one) for one in DEGENERATE), *itertools.pairwise(DEGENERATE), *itertools.pairwise(reversed(DEGENERATE))]:
        for rows in (B, 1):
            module, student = built(name), leaves(each(student_of(name, 0, rows), DEGENERATE[mine]))
            total, _ = asked(module, student, each(teacher_of(name, 1, rows), DEGENERATE[theirs]), LABELS[:rows])
            total.backward()
            after_step(module)
            tensors = [total, *(student[tap].grad for tap in read(name)), *(p.grad for p in module.parameters()), *module.buffers()]
            assert all(torch.isfinite(tensor).all() for tensor in tensors), (mine, theirs, rows)


@granular("example")
def test_examples_add_up_over_any_split_of_the_batch(name):
    student, teacher = student_of(name, 0), teacher_of(name, 1)
    total, count = term(name, student, teacher, progress=0.5)
    for cut in (1, 3, 4):
        halves = [term(name, *({tap: x[rows] for tap, x in one.items()} for one in (student, teacher)), LABELS[rows],
                       ids=torch.arange(B)[rows], progress=0.5) for rows in (slice(0, cut), slice(cut, B))]
        assert close(halves[0][0] + halves[1][0], total)
        assert halves[0][1] + halves[1][1] == count


@granular("batch")
def test_batch_granularity_is_declared_for_a_reason(name):
    student, teacher = student_of(name, 0), teacher_of(name, 1)
    halves = [term(name, *({tap: x[rows] for tap, x in one.items()} for one in (student, teacher)), LABELS[rows],
                   ids=torch.arange(B)[rows])[0] for rows in (slice(0, 4), slice(4, 8))]
    total = term(name, student, teacher)[0]
    assert (sum(halves) - total).abs() > 1e-3 * total.abs()


NAMED = ("weight", "layers", "embedding", "heads", "relations")
"""Fields that the battery doesn't vary: the weight is applied outside the term, layers are named, not dialled, heads are the
model's, and relations read other layers (tests/objectives/test_tokens.py)."""


def variations(name):
    """(field, value) for every field but those that are `NAMED`: other numbers, a schedule, the other words, another tuple."""
    cls = CLASSES[name]
    hints, found = typing.get_type_hints(cls), []
    for field in dataclasses.fields(cls):
        if field.name in NAMED:
            continue
        value, words = field.default, typing.get_args(hints[field.name])
        if isinstance(value, bool):
            found.append((field.name, not value))
        elif isinstance(value, int):
            found.append((field.name, 3))
        elif isinstance(value, float):
            found.append((field.name, value / 2 or 0.25))
            if "Scheduled" in field.type:
                found.append((field.name, Schedule(start=value + 1, end=value + 2)))
        elif isinstance(value, str):
            found += [(field.name, word) for word in words if word != value]
        elif isinstance(value, tuple):
            found.append((field.name, value[1:]))
        else:
            assert value is None, f"{name}.{field.name}: the battery does not know how to vary this field"
            found.append((field.name, tuple(0.5 + 0.25 * c for c in range(C))))
    return found


def variation_cases(keep=lambda name, value: True):
    return [pytest.param(name, field, value, id=f"{name}.{field}={value if isinstance(value, str) else type(value).__name__}")
            for name in NAMES for field, value in variations(name) if keep(name, value)]


def after_step(module):
    """The hook of a term that has one, as the step calls it."""
    if hasattr(module, "after_step"):
        with torch.no_grad():
            module.after_step()


def steps(name, module, moments=(0.0, 0.02, 0.5, 0.6), start=0):
    """What some steps of training are made of: values, the student's gradients and the parameters', step by step, in one list."""
    parameters, found = list(module.parameters()), []
    for step, progress in enumerate(moments):
        student, teacher = leaves(student_of(name, 10 * (start + step))), teacher_of(name, 10 * (start + step) + 1)
        ids = (torch.arange(B) + 3 * (start + step)) % 20
        total, count = asked(module, student, teacher, ids=ids, progress=progress)
        taps = [student[tap] for tap in read(name)]
        gradients = torch.autograd.grad(total / max(count, 1.0), [*taps, *parameters])
        found += [total.detach(), *gradients]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients[len(taps):], strict=True):
                parameter -= 1e-3 * gradient / gradient.norm().clamp(min=1.0)
        after_step(module)
    return found


def different(one, other):
    """Whether any two of them differ by more than a thousandth of their size."""
    return any(a.shape != b.shape or (a - b).abs().max() > 1e-3 * b.abs().max() for a, b in zip(one, other, strict=False))


@pytest.mark.parametrize(("name", "field", "value"), variation_cases())
def test_every_field_has_an_effect(name, field, value):
    """A knob that is wired on one path only looks as if it did nothing, and the paper's setting is never run."""
    changed = dataclasses.replace(default(name), **{field: value})
    assert different(steps(name, built(name, changed)), steps(name, built(name)))


@pytest.mark.parametrize(
    ("name", "field", "value"), variation_cases(lambda name, value: is_plain(CLASSES[name]) and (name, "values") not in WAIVED))
def test_every_field_has_its_effect_in_values_and_term(name, field, value):
    student, teacher = logits_of(0), teacher_of(name, 1)
    changed = dataclasses.replace(default(name), **{field: value})
    found = values(changed, student, teacher["logits"])
    assert different([found], [values(default(name), student, teacher["logits"])])
    assert close(term(name, {"logits": student}, teacher, objective=changed)[0], found.sum())


@pytest.mark.parametrize(("name", "field", "value"), variation_cases(lambda name, value: isinstance(value, Schedule)))
def test_scheduled_field_is_its_value_at_that_moment(name, field, value):
    student, teacher = student_of(name, 0), teacher_of(name, 1)
    scheduled = dataclasses.replace(default(name), **{field: value})
    for progress in (0.0, 0.3, 1.0):
        fixed = dataclasses.replace(default(name), **{field: value_at(value, progress)})
        found = term(name, student, teacher, progress=progress, objective=scheduled)[0]
        assert close(found, term(name, student, teacher, progress=progress, objective=fixed)[0], 1e-6)


@every
def test_config_to_object_to_config(name):
    objectives = [kinds.configure("objectives", name, {}), default(name)]
    objectives += [dataclasses.replace(default(name), weight=Schedule(start=0.0, end=0.5, shape="cosine"))]
    objectives += [dataclasses.replace(default(name), **{field: value}) for field, value in variations(name)]
    for objective in objectives:
        written = json.loads(json.dumps(dataclasses.asdict(objective)))
        assert kinds.configure("objectives", name, written) == objective


@every
def test_bad_values_are_refused_with_four_parts(name):
    for field in dataclasses.fields(CLASSES[name]):
        bad = [0.5, 0, -1, "much"] if isinstance(field.default, int) and not isinstance(field.default, bool) else \
            [math.nan, math.inf, -1.0, "much"] if isinstance(field.default, float) else \
            ["much"] if isinstance(field.default, str | bool) and field.name != "embedding" else []
        for value in bad:
            with pytest.raises(RecipeError) as error:
                kinds.configure("objectives", name, {field.name: value}, "objective[0]")
            assert re.search(r": got .+, expected .+\. .+\. .+\.", str(error.value)), str(error.value)
        if "Scheduled" in field.type:
            with pytest.raises(RecipeError):
                kinds.configure("objectives", name, {field.name: {"start": 1.0, "end": -1.0}})
            with pytest.raises(RecipeError):
                kinds.configure("objectives", name, {field.name: {"start": 1.0, "end": 2.0, "shape": "liner"}})


@on_logits
def test_missing_knowledge_is_named(name):
    objective = default(name)
    computing = [objective.build(Shapes(classes=C, examples=100))] + ([objective.values] if isinstance(objective, PlainObjective) else [])
    for compute in computing:
        for nothing in (None, Knowledge()):
            with pytest.raises(RecipeError, match=re.escape(name)):
                compute(StudentOutput(logits_of(0)), nothing, batch_of(), 0.0)


@on_layers
def test_missing_features_are_named(name):
    student, teacher = student_of(name, 0), teacher_of(name, 1)
    taps = default(name).teacher_taps
    for given_, had in ((None, "none"), ({"logits": logits_of(1)}, "none"), ({taps[0]: teacher[taps[0]]}, taps[0])):
        with pytest.raises(DataError, match=f"no such features: got {had}, expected {', '.join(taps)}"):
            term(name, student, given_)


@on_layers
def test_features_of_other_examples_are_refused(name):
    """Prevents: a teacher's single row is broadcast, and every example is trained on the first one's features."""
    student, teacher = student_of(name, 0), teacher_of(name, 1)
    for rows in (1, B - 1):
        with pytest.raises(DataError, match="different numbers of examples") as error:
            term(name, student, {tap: x[:rows] for tap, x in teacher.items()})
        assert re.search(r": got .+, expected .+\. .+\. .+\.", str(error.value)), str(error.value)


def test_pairs_are_in_the_order_of_the_layers_and_one_teacher_layer_may_serve_two():
    student, teacher = {tap: drawn(0, B, 2, dtype=torch.float16) for tap in "ab"}, {"x": drawn(1, B, 3).requires_grad_()}
    mine, theirs = paired({"b": "x", "a": "x"}, StudentOutput(logits_of(0), student), Knowledge(features=teacher))
    assert mine[0].equal(student["b"].float()) and mine[1].equal(student["a"].float())
    assert len(theirs) == 2 and all(not part.requires_grad and part.equal(teacher["x"]) for part in theirs)


@on_layers
def test_unresolved_layers_are_refused(name):
    with pytest.raises(RecipeError, match="not resolved"):
        kinds.configure("objectives", name, {}).build(shapes_of(name))


@parts(keep=lambda cls: not cls.needs)
def test_objective_without_a_teacher_does_not_listen_to_one(name):
    student = student_of(name, 0)
    assert close(term(name, student, None)[0], term(name, student, {"logits": logits_of(1)})[0], 0.0)


@on_logits
def test_other_number_of_classes_or_examples_is_refused(name):
    """Broadcasting (1, C) over the batch trains every example on the first one's teacher."""
    for teacher in (logits_of(1)[:, :4], logits_of(1)[:1], logits_of(1)[:, :1]):
        with pytest.raises(DataError, match="different shapes"):
            term(name, {"logits": logits_of(0)}, {"logits": teacher})
        if isinstance(default(name), PlainObjective):
            with pytest.raises(DataError, match="different shapes"):
                values(default(name), logits_of(0), teacher)


@parts("mean", keep=lambda cls: is_plain(cls) and cls.needs)
def test_ensemble_is_its_mean_probabilities(name):
    """Members' rows (B, M, C) give what one teacher with the mean probabilities would give (at T = 1, where both are the same thing)."""
    members = torch.stack([logits_of(seed) for seed in (3, 4, 5)], dim=1)
    weights = torch.tensor([0.2, 0.3, 0.5])
    changes = {"temperature": 1.0} if hasattr(default(name), "temperature") else {}
    objective = dataclasses.replace(default(name), **changes)
    for stated, share in ((None, torch.full((3,), 1 / 3)), (weights, weights)):
        knowledge = Knowledge(logits=members, member_weights=stated)
        found = objective.values(StudentOutput(logits_of(0)), knowledge, batch_of(), 0.0)[0]
        mean = (members.softmax(-1) * share[:, None]).sum(1).log()
        assert close(found, values(objective, logits_of(0), mean))


def topk_of(teacher, k, temperature):
    """What a store keeps of dense rows: entries relative to the maximum, log-sum-exp and tail at the temperature."""
    relative = teacher - teacher.max(-1, keepdim=True).values
    kept, ids = relative.topk(k, dim=-1)
    log_sum_exp = torch.logsumexp(relative / temperature, -1)
    outside = (1 - (kept / temperature - log_sum_exp[:, None]).exp().sum(-1)).clamp(min=0) if k < C else torch.zeros(len(teacher))
    return Knowledge(topk=TopKRows(ids, kept, {temperature: log_sum_exp}, {temperature: outside.log()}))


@parts(keep=lambda cls: "topk" in cls.needs)
def test_topk_of_all_classes_equals_dense(name):
    objective, teacher = default(name), logits_of(1)
    dense, kept = (logits_of(0).requires_grad_() for _ in range(2))
    expected = values(objective, dense, teacher)
    found = objective.values(StudentOutput(kept), topk_of(teacher, C, getattr(objective, "temperature", 1.0)), batch_of(), 0.0)[0]
    assert (found - expected).abs().max() < 1e-6 * max(1.0, expected.abs().max().item())
    expected.sum().backward()
    found.sum().backward()
    assert close(kept.grad, dense.grad, 2e-6)


@parts(keep=lambda cls: cls.needs == {"logits"})
def test_topk_rows_are_refused_by_what_needs_all_classes(name):
    module = built(name)
    with pytest.raises(RecipeError, match=re.escape(name)):
        module(StudentOutput(logits_of(0)), topk_of(logits_of(1), 3, 4.0), batch_of(), 0.0)


@plain
def test_several_students_at_once_equal_one_after_the_other(name):
    """Small students of all seeds train in one vectorised step; a formula with an in-place trick would fail only there."""
    module, teacher = default(name).build(Shapes(classes=C, examples=100)), teacher_of(name, 9, dtype=torch.float64)["logits"]
    students = torch.stack([logits_of(seed, dtype=torch.float64) for seed in (0, 1, 2)])

    def loss(student):
        return module(StudentOutput(student), Knowledge(logits=teacher), batch_of(), 0.0)[0]

    found = torch.func.vmap(torch.func.grad(loss))(students)
    for student, gradient in zip(students, found, strict=True):
        assert torch.allclose(gradient, torch.func.grad(loss)(student), atol=1e-12)


# --- terms with state


@plain
def test_a_formula_has_no_state(name):
    """A checkpoint has nothing to carry for these, and a fused term must not hide a cache in its buffers."""
    assert not default(name).build(Shapes(classes=C, examples=100)).state_dict()


@every
def test_every_parameter_is_trained(name):
    """A part that is built and then not used has random weights for ever, and the formula is another one than the docstring's."""
    module = built(name)
    trained = {parameter: False for parameter in module.parameters()}
    for step, progress in enumerate((0.0, 0.5, 1.0)):
        asked(module, leaves(student_of(name, step)), teacher_of(name, step + 50), progress=progress)[0].backward()
        after_step(module)
        for parameter in trained:
            trained[parameter] |= parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        module.zero_grad()
    assert all(trained.values())


@every
def test_run_that_is_resumed_goes_on_exactly(name):
    """Prevents: a memory or a running mean that is kept outside the buffers, so that a resumed run is another one."""
    module, other = built(name), built(name, seed=1)
    steps(name, module)
    other.load_state_dict(copy.deepcopy(module.state_dict()), strict=True)
    for expected, found in zip(steps(name, module, start=4), steps(name, other, start=4), strict=True):
        assert found.equal(expected)
    for expected, found in zip(module.state_dict().values(), other.state_dict().values(), strict=True):
        assert found.equal(expected)


@every
def test_value_asked_for_twice_is_the_same_and_the_parameters_with_it(name):
    module, student, teacher = built(name), student_of(name, 0), teacher_of(name, 1)
    first = asked(module, student, teacher, progress=0.5)
    parameters = copy.deepcopy(list(module.parameters()))
    again = asked(module, student, teacher, progress=0.5)
    assert first[0].equal(again[0]) and first[1] == again[1]
    for before, after in zip(parameters, module.parameters(), strict=True):
        assert before.equal(after)


@pytest.mark.parametrize("name", [name for name in NAMES if hasattr(built(name), "after_step")])
def test_after_step_changes_buffers_only_and_once(name):
    """A hook that is called again without a step between (a skipped step, a repaired one) must not count the batch twice."""
    module = built(name)
    asked(module, leaves(student_of(name, 0)), teacher_of(name, 1), progress=0.5)[0].backward()
    parameters, before = copy.deepcopy(list(module.parameters())), copy.deepcopy(list(module.buffers()))
    module.after_step()  # it brings its own no_grad
    once = copy.deepcopy(list(module.buffers()))
    assert any(not old.equal(new) for old, new in zip(before, once, strict=True))
    assert not any(buffer.requires_grad for buffer in module.buffers())
    assert all(old.equal(new) for old, new in zip(parameters, module.parameters(), strict=True))
    module.after_step()
    assert all(old.equal(new) for old, new in zip(once, module.buffers(), strict=True))


@every
def test_copy_is_a_term_of_its_own(name):
    """Arms and seeds get copies: a shared memory would let one student see the other's examples."""
    module = built(name)
    asked(module, leaves(student_of(name, 0)), teacher_of(name, 1), progress=0.5)[0].backward()  # a copy may be taken between pass and step
    twin = copy.deepcopy(module)
    kept = copy.deepcopy(twin.state_dict())
    steps(name, module)
    assert all(old.equal(new) for old, new in zip(kept.values(), twin.state_dict().values(), strict=True))
    assert all(a.equal(b) for a, b in zip(steps(name, copy.deepcopy(twin), start=9), steps(name, twin, start=9), strict=True))
