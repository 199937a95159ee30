"""Checks of matched layers: planted faults are named, and no objective that matches layers raises a false alarm."""

from __future__ import annotations

import copy
import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.errors import SelfTestError
from understudy.objective import LayerObjective, LayerTerm
from understudy.objectives.features import Hint
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.logits import CurriculumTemperature, SoftTargets
from understudy.projections import Project
from understudy.records import Knowledge
from understudy.selftest.examine import examine, raise_first
from understudy.selftest.layers import look
from understudy.selftest.stored import layer_difference
from understudy.store import codec
from understudy.store.reader import Reader
from understudy.store.schema import Header
from understudy.store.writer import Writer
from understudy.teachers import stored

PAIR = {"relus.2": "relus.2"}
LAYERED = [kinds.find("objectives", name) for name in kinds.objective_names() if issubclass(kinds.find("objectives", name), LayerObjective)]
NAMES = [kinds.objective_name(cls()) for cls in LAYERED if not cls.of_tokens]
"""Pictures have no tokens: for objectives on these see tests/test_masked_runs.py."""


def table(subject):
    return {check.name: check for check in examine(subject)}


def parts_of(message):
    """The four parts: what, got and expected, what would have happened, what to do."""
    assert ": got " in message and ", expected " in message and message.count(". ") >= 2, message


def caught(subject, fault):
    """The first fault, which has to be this one, with a message in four parts."""
    with pytest.raises(SelfTestError) as error:
        raise_first(examine(subject))
    assert error.value.fault == fault, str(error.value)
    parts_of(str(error.value))
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_no_false_alarm_on_any_objective_that_matches_layers(world, beside_labels, name):
    found = table(world.subject(beside_labels(name)))
    faults = [(check.name, check.figure) for check in found.values() if check.result == "fault"]
    assert not faults
    assert found["tap-captured-nothing"].result == "ok" and found["projection-not-training"].result in ("ok", "skipped")


def test_a_term_without_layers_or_parameters_is_skipped_with_a_reason(world):
    found = table(world.subject([SoftTargets(temperature=2.0), CrossEntropy()]))
    assert found["tap-captured-nothing"].result == found["projection-not-training"].result == "skipped"
    assert "layer" in found["tap-captured-nothing"].figure and "train" in found["projection-not-training"].figure


def test_a_curriculum_that_starts_at_zero_is_no_frozen_parameter(world):
    """Its temperature has no gradient at the first step: only the end of the schedule shows that it trains."""
    found = table(world.subject([CurriculumTemperature()]))
    assert found["projection-not-training"].result == "ok" and found["projection-not-training"].figure.startswith("1 ")


class Spoilt(nn.Module):
    """A network with something done to what one of its layers gives; what follows is as before."""

    def __init__(self, inner: nn.Module, change) -> None:
        super().__init__()
        self.inner = copy.deepcopy(inner)
        self.side = Side(change)

    def forward(self, x):
        self.side(self.inner.features(x))
        return self.inner(x)


class Side(nn.Module):
    def __init__(self, change) -> None:
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(x)


def _poke(x):
    x = x.clone()
    x[::2, 0] = torch.inf
    return x


@pytest.mark.parametrize(("change", "words"), [
    (lambda x: 0 * x, "zeros only"), (lambda x: 0 * x + torch.arange(x.shape[1]), "the same values"), (_poke, "NaN or infinity"),
])
@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_a_dead_layer_is_named(world, whose, change, words):
    """The logits are right, so nothing else would notice: the term would match constants for the whole run."""
    tapped = Hint(layers={"side": "head:input"} if whose == "student" else {"head:input": "side"})
    student = (lambda: Spoilt(world.cnn(4, 2), change)) if whose == "student" else (lambda: world.cnn(4, 2))
    module = Spoilt(world.module, change) if whose == "teacher" else None
    shapes = world.shapes([tapped], student(), module or world.module)
    message = caught(world.subject([tapped, CrossEntropy()], student=student, module=module, shapes=shapes), "tap-captured-nothing")
    assert f"the {whose}'s side" in message and words in message


def test_a_layer_that_the_forward_pass_leaves_out_is_named(world):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.unused = world.cnn(4, 2), nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(x)

    tapped = Hint(layers={"unused": "head:input"})
    shapes = world.shapes([Hint(layers={"inner.head:input": "head:input"})], Idle(), world.module)
    shapes = dataclasses.replace(shapes, student={"unused": (3,)})
    assert "unused" in caught(world.subject([tapped, CrossEntropy()], student=Idle, shapes=shapes), "tap-captured-nothing")


def test_a_teacher_that_forgets_its_layers_is_named(world):
    """A teacher of one's own that says it gives features, and gives none."""
    subject = world.subject([Hint(layers=PAIR), CrossEntropy()])
    subject.teacher.tap(())
    assert "nothing" in caught(subject, "tap-captured-nothing")


def test_a_branch_that_starts_at_zero_is_no_dead_layer(world):
    """Networks whose last batch norm of a block starts at zero are common and learn: it is asked again with disturbed weights."""

    def student():
        made = world.cnn(4, 2)
        nn.init.zeros_(made.norms[2].weight)
        return made

    found = table(world.subject([Hint(layers={"norms.2": "norms.2"}), CrossEntropy()], student=student))
    assert found["tap-captured-nothing"].result == "ok"


def test_mostly_dead_channels_are_a_warning(world):
    def student():
        made = world.cnn(4, 2)
        with torch.no_grad():
            made.norms[2].bias[:6] = -50.0
            made.norms[2].weight[:6] = 0.1
        return made

    found = table(world.subject([Hint(layers=PAIR), CrossEntropy()], student=student))["tap-captured-nothing"]
    assert found.result == "warning" and "75%" in found.figure
    parts_of(found.message)


def test_dead_channels_are_counted_along_the_right_axis():
    draw = torch.Generator().manual_seed(0)
    maps, tokens, vectors = (torch.randn(shape, generator=draw) for shape in ((6, 4, 3, 3), (6, 5, 4), (6, 4)))
    maps[:, 0], tokens[..., 0], vectors[:, 0] = 7.0, 7.0, 7.0
    assert [look(one).dead for one in (maps, tokens, vectors)] == [0.25] * 3
    maps[:, 1, 1:] = 0.0  # a channel in which anything moves is alive
    assert look(maps).dead == 0.25 and look(0 * maps).zero and not look(maps).zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class Broken(LayerObjective):
    """A hint whose projection is frozen, detached, left out of the modules, or not used."""

    how: str = "frozen"
    auto: ClassVar = "vectors"

    def build(self, shapes):
        (mine, theirs), = self.pairs.items()
        return LayerTerm(self.pairs, [Crooked(shapes.student[mine], shapes.teacher[theirs], self.how)])


class Crooked(nn.Module):
    def __init__(self, student, teacher, how):
        super().__init__()
        self.how = how
        made = Project(student, teacher)
        if how == "frozen":
            made.requires_grad_(False)
        self.adapter = [made] if how == "hidden" else made

    def forward(self, student, teacher):
        adapter = self.adapter[0] if self.how == "hidden" else self.adapter
        if self.how == "detached":
            return (adapter(student).detach() - teacher).square().mean(1) + student.square().mean(1)
        if self.how == "unused":
            return (student.mean(1) - teacher.mean(1)).square()
        return (adapter(student) - teacher).square().mean(1)


@pytest.mark.parametrize(("how", "words"), [
    ("frozen", "Broken.pairs.0.adapter.path.0.weight"), ("detached", "Broken.pairs.0.adapter.path.0.weight"),
    ("unused", "Broken.pairs.0.adapter.path.0.weight"), ("hidden", "no module holds"),
])
def test_a_projection_that_does_not_train_is_named(world, how, words):
    """The student would be pulled towards a random projection of the teacher, at a loss that falls."""
    broken = world.auto(Broken(how=how))
    assert words in caught(world.subject([broken, CrossEntropy()]), "projection-not-training")


def test_a_projection_as_it_should_be_is_no_fault(world):
    assert table(world.subject([world.auto(Broken(how="none")), CrossEntropy()]))["projection-not-training"].figure.startswith("2 ")


@pytest.mark.parametrize("fault", [0.0, 1e-6])
def test_a_layer_term_without_effect_is_named(world, fault):
    assert "Hint" in caught(world.subject([Hint(layers=PAIR, weight=fault), CrossEntropy()]), "no-op-term")


# --- stored layers


def recorded(world, folder, dtype, shift=0):
    """A subject that reads the teacher's answers and a layer from stores; the layer's rows moved by `shift` examples."""
    objectives = [Hint(layers=PAIR), CrossEntropy()]
    subject = world.subject(objectives)
    names = [f"{row:03d}" for row in range(len(world.rows.labels))]
    same = {"classes": 10, "teacher": "digits", "data": "d", "transform": "t"}
    layer = Header(keep="feature", tap="relus.2", shape=(16, 4, 4), dtype=dtype, **same)
    said = subject.teacher.teach(subject.batch(torch.arange(len(names)), 0))
    moved = dataclasses.replace(said, features={"relus.2": said.features["relus.2"].roll(shift, 0)})
    readers = []
    for name, header in (("logits", Header(**same)), ("layer", layer)):
        with Writer(folder / name, header) as writer:
            writer.append(names, 0, codec.encode(moved, header))
        readers.append(Reader(folder / name))
    teacher = stored.Teacher(readers[0], names, features={"relus.2": readers[1]})
    return dataclasses.replace(subject, teacher=teacher, provides=teacher.provides, header=readers[0].header, layers={"relus.2": layer})


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_stored_layers_are_those_of_their_own_examples(world, tmp_path, dtype):
    found = table(recorded(world, tmp_path, dtype))
    assert not [check for check in found.values() if check.result == "fault"]
    assert found["misaligned-targets"].result == "ok" and "1 stored layers" in found["misaligned-targets"].figure


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_layers_stored_beside_other_examples_are_named(world, tmp_path, dtype):
    """The answers are right and only the layer's rows are moved: it trains at a plausible loss, towards other examples."""
    message = caught(recorded(world, tmp_path, dtype, shift=1), "misaligned-targets")
    assert "relus.2" in message and dtype in message


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_the_stated_error_is_allowed_and_little_more(dtype):
    """Values whose codec's error is the largest that it can be, of rows with nearly everything in common, are no fault."""
    header = Header(keep="feature", tap="a", shape=(4, 3, 3), dtype=dtype, classes=2, teacher="t", data="d", transform="t")
    rows = 5 + 1e-2 * torch.randn(32, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    kept = codec.encode(Knowledge(features={"a": rows}), header)
    back = codec.decode({name: torch.from_numpy(array) for name, array in kept.items()}, header)
    assert float(layer_difference(back.features["a"], rows, header).max()) == 0
    assert float(layer_difference(back.features["a"] * 1.2, rows, header).min()) > 1
    broken = back.features["a"].clone()
    broken[3, 0, 0, 0] = torch.nan
    assert float(layer_difference(broken, rows, header)[3]) == torch.inf


def test_an_output_layer_that_nothing_trains_is_named(world):
    """Prevents: layers matched perfectly under an output layer that is as random as at the start."""
    message = caught(world.subject([Hint(layers=PAIR)]), "output-not-training")
    assert "gradient of 0 for the answers" in message
