"""stages/record.py: asked once, kept under what it depends on."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from understudy.cache import Cache
from understudy.data import from_arrays
from understudy.errors import DataError, Interrupted
from understudy.records import Batch, Knowledge
from understudy.report.facts import Size
from understudy.stages import record
from understudy.stages.prepare import Given, prepare
from understudy.stages.taught import Taught
from understudy.store.describe import describe
from understudy.store.reader import Reader

RIGHTS = {"terms": "own", "teachers": {}, "acknowledged": []}


class Counting:
    """A teacher that notes every row that it is asked about; rows in `broken` get NaN."""

    provides = frozenset({"logits"})

    def __init__(self, fingerprint="counting", broken=()):
        self.fingerprint, self.asked, self.broken = fingerprint, [], set(broken)
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3)

    def teach(self, batch: Batch, outputs=None) -> Knowledge:
        self.asked += [(row, batch.view) for row in batch.ids.tolist()]
        with torch.no_grad():
            found = self.net(batch.inputs)
        found[[index for index, row in enumerate(batch.ids.tolist()) if row in self.broken]] = float("nan")
        return Knowledge(logits=found)


@pytest.fixture
def make(toy, tmp_path):
    """Record with a teacher; (folder, header, prepared, tree, notes)."""
    from understudy import recipe

    def call(teacher, *overrides, given=None, cancel=lambda: False):
        wanted = toy.recipe(*overrides)
        data, tree = prepare(wanted, given or Given()), recipe.resolved(wanted)
        taught = Taught(teacher, Size(1, 4), [])
        header = record.header_of(tree, data, taught, RIGHTS)
        events = []
        folder = record.record(data, taught, header, Cache(tmp_path / "cache"), events.append, cancel)
        return folder, header, data, tree, events

    return call


def test_every_row_once_and_never_again(make):
    """Prevents: validation and test rows are asked again for the report, or rows twice in one run."""
    teacher = Counting()
    folder, header, data, tree, _ = make(teacher)
    assert len(teacher.asked) == len(set(teacher.asked)) == 150
    again = Counting()
    assert make(again)[0] == folder and again.asked == []
    [batch] = data.rows.batches(data.distilled[:30], 30)
    learnt = record.learn_from(folder, header, data, tree).teach(batch)
    torch.testing.assert_close(learnt.log_probs(2.0), teacher.teach(batch).log_probs(2.0))
    tree["objective"] = [{"kind": "logits.MSE"}]
    torch.testing.assert_close(record.learn_from(folder, header, data, tree).teach(batch).logits, teacher.teach(batch).logits)
    torch.testing.assert_close(record.said(folder, header, data, data.test).logits, teacher.net(data.rows.inputs(data.test)).detach())


@pytest.mark.parametrize("change", [
    "data.split.seed=5", "store.dtype=float16", "store={keep: topk, k: 2}",
    "data={kind: builtin, name: iris, split: {validation: 0.1, test: 0.4}}"])  # fmt: skip
def test_what_changes_the_answers_is_another_store(make, change):
    first, second = make(Counting()), make(Counting(), change)
    assert first[0] != second[0]


def test_another_teacher_is_another_store_and_other_rights_are_not(make):
    assert make(Counting("a"))[0] != make(Counting("b"))[0]


@pytest.mark.parametrize(
    "change", ["objective.0.temperature=9", "training.lr=0.5", "student.model={arch: mlp}", "training.seeds=5", "gates.min_kept=0.1"]
)
def test_what_does_not_change_the_answers_asks_nothing(make, change):
    make(Counting())
    again = Counting()
    make(again, change)
    assert again.asked == []


def test_a_larger_share_asks_for_the_rest_only(make):
    """Prevents: a study of fewer labels or examples pays the teacher again for each point."""
    small = Counting()
    make(small, "data.transfer.examples=0.3")
    more = Counting()
    make(more)
    assert small.asked and more.asked and not set(small.asked) & set(more.asked) and len(small.asked) + len(more.asked) == 150


def test_a_cancelled_recording_keeps_what_it_has(make):
    teacher, asked = Counting(), []
    with pytest.raises(Interrupted):
        make(
            teacher,
            "data={kind: builtin, name: iris, split: {validation: 0.2, test: 0.3}}",
            cancel=lambda: asked.append(1) or len(asked) >= 1,
        )
    rest = Counting()
    make(rest)
    assert teacher.asked and not set(teacher.asked) & set(rest.asked) and len(teacher.asked) + len(rest.asked) == 150


def test_progress_and_the_closing_note(make):
    *_, events = make(Counting())
    assert [event.fraction for event in events if event.kind == "progress"][-1] == 1.0
    [note] = [event for event in events if event.kind == "note"]
    assert note.data == {"asked": 150} and "150 rows" in note.text
    *_, events = make(Counting())
    assert events[-1].data == {"asked": 0}


def test_top_k_keeps_the_fixed_temperatures_of_the_objective(make, toy):
    folder, header, *_ = make(Counting(), "store={keep: topk, k: 2}", "objective.0.temperature=5")
    assert header.temperatures == (1.0, 5.0) and header.k == 2
    assert make(Counting(), "store={keep: topk, k: 64}")[1].k == 3, "no more than there are classes"
    assert make(Counting())[1].temperatures == ()


def test_the_header_carries_the_rights(make):
    folder, *_ = make(Counting())
    assert json.loads((folder / "header.json").read_text())["rights"] == RIGHTS
    assert record.rights_of(str(folder)) == {}


def many(rows=3000):
    labels = np.arange(rows) % 3
    return Given(examples=from_arrays(np.random.default_rng(0).normal(labels[:, None] * 2.0, 1, (rows, 4)), labels))


GIVEN = "data={kind: given, split: {validation: 0.2, test: 0.3}}"


@pytest.mark.parametrize("part", ["distilled", "test", "validation"])
def test_a_row_without_a_finite_answer_is_left_out_everywhere_and_said(make, toy, part):
    """Prevents: one NaN in a thousand rows stops the run after everything was paid for, or is learnt from."""
    row = int(getattr(prepare(toy.recipe(GIVEN), many()), part)[7])
    folder, header, data, tree, _ = make(Counting(broken=[row]), GIVEN, given=many())
    assert Reader(folder, header).quarantined == {(data.names[row], 0)}
    kept = record.without_quarantined(folder, header, data)
    for name in ("distilled", "control", "validation", "test"):
        assert row not in getattr(kept, name) and len(getattr(kept, name)) >= len(getattr(data, name)) - 1
    assert data.names[row] in kept.notes[-1] and "not finite" in kept.notes[-1]
    learnt = record.learn_from(folder, header, kept, tree)
    for batch in kept.rows.batches(kept.distilled, 500):
        assert torch.isfinite(learnt.teach(batch).log_probs(2.0)).all()
    for rows in (kept.test, kept.validation):
        assert torch.isfinite(record.said(folder, header, kept, rows).logits).all()
    again = Counting(broken=[row])
    make(again, GIVEN, given=many())
    assert again.asked == [], "a quarantined row is not asked again"


def test_more_than_one_in_a_thousand_stops_the_recording(make):
    with pytest.raises(DataError, match="finite"):
        make(Counting(broken=range(0, 3000, 100)), GIVEN, given=many())


# --- layers

PICTURES = (
    "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.8}, augment: {jitter: 1, noise: 0.05, views: 2}}",
    "teacher.model={arch: cnn, width: 4}",
)
SHAPES = {"map": (3, 6, 6), "vector": (10,)}


class Seen(Counting):
    """A teacher of two layers; `tell` is what it gives of them."""

    provides = frozenset({"logits", "features"})

    def __init__(self, *arguments, tell=("map", "vector"), large=1.0, **options):
        super().__init__(*arguments, **options)
        self.conv, self.net, self.tell, self.large = nn.Conv2d(1, 3, 3), nn.Linear(108, 10), tell, large

    def teach(self, batch: Batch, outputs=None) -> Knowledge:
        self.asked += [(row, batch.view) for row in batch.ids.tolist()]
        with torch.no_grad():
            seen = self.conv(batch.inputs).relu()
            logits = self.net(seen.flatten(1))
        found = {"map": self.large * seen, "vector": logits}
        found["map"][[index for index, row in enumerate(batch.ids.tolist()) if row in self.broken]] = float("nan")
        return Knowledge(logits=logits, features={tap: found[tap] for tap in self.tell})


@pytest.fixture
def layers(toy, tmp_path):
    """Record layers with a teacher; (folders, headers, prepared, tree, events)."""
    from understudy import recipe

    def call(teacher, *overrides, taps=("map", "vector"), cancel=lambda: False):
        wanted = toy.recipe(*PICTURES, *overrides)
        data, tree = prepare(wanted, Given()), recipe.resolved(wanted)
        taught = Taught(teacher, Size(1, 4), [])
        headers = record.feature_headers(tree, data, taught, {tap: SHAPES[tap] for tap in taps}, RIGHTS)
        events = []
        folders = record.record_features(data, taught, headers, Cache(tmp_path / "cache"), events.append, cancel)
        return folders, headers, data, tree, events

    return call


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_stored_layers_are_the_live_ones_under_every_view(layers, make, dtype):
    """Prevents: features of the plain image, or of another view, matched with a student that sees the augmented one."""
    teacher = Seen()
    folders, headers, data, tree, _ = layers(teacher, f"store.features={dtype}")
    answers, header, *_ = make(teacher, *PICTURES)
    learnt = record.learn_from(answers, header, data, tree, folders)
    assert learnt.provides == {"logits", "features"} and {header.dtype for header in headers.values()} == {dtype}
    seen = []
    for view in (1, 2):
        [batch] = data.rows.batches(data.distilled[torch.randperm(len(data.distilled))[:64]], 64, data.views, view)
        stored, live = learnt.teach(batch), teacher.teach(batch)
        for tap, value in live.features.items():
            channel = value.flatten(2).abs().amax(-1)[..., None, None] if value.ndim == 4 else value.abs().amax(-1, keepdim=True)
            allowed = {"float32": 0 * value, "float16": value.abs() * 2**-11 + 2**-25, "int8": channel * 1.001 / 254}[dtype]
            # A batch of another size may round otherwise while it computes.
            assert ((stored.features[tap] - value).abs() <= allowed + 1e-5 * float(value.abs().max())).all()
        torch.testing.assert_close(stored.log_probs(2.0), live.log_probs(2.0))
        seen.append(live.features["map"])
    assert (seen[0] - seen[1]).abs().max() > 0.1


def test_layers_are_asked_once_and_only_for_what_students_see(layers):
    """Prevents: a teacher paid again for each layer, or for validation and test rows that no student matches."""
    teacher = Seen()
    folders, _, data, _, events = layers(teacher)
    assert sorted(teacher.asked) == sorted((row, view) for view in (1, 2) for row in data.distilled.tolist())
    assert [event.fraction for event in events if event.kind == "progress"][-1] == 1.0
    assert events[-1].data == {"asked": len(teacher.asked)} and "map, vector" in events[-1].text
    again = Seen()
    assert layers(again)[0] == folders and again.asked == []
    assert layers(again)[-1][-1].data == {"asked": 0}


def test_runs_share_the_layers_that_they_have_in_common(layers):
    """Prevents: one layer more, and the others are recorded again."""
    first = layers(Seen(tell=("map",)), taps=("map",))[0]
    more = Seen(tell=("vector", "map"))
    folders = layers(more)[0]
    assert folders["map"] == first["map"] and len(more.asked) == 2 * len(layers(Seen())[2].distilled)
    assert layers(less := Seen(), taps=("vector",))[0] == {"vector": folders["vector"]} and less.asked == []
    other = Seen("another")
    assert not set(layers(other)[0].values()) & set(folders.values()) and other.asked


def test_a_larger_share_asks_for_the_missing_rows_of_each_layer(layers):
    """Each layer lacks other rows: the teacher is asked for their union, and no row is written twice."""
    few = layers(Seen(tell=("map",)), "data.transfer.examples=0.3", taps=("map",))[2].distilled.tolist()
    middle = Seen()
    folders, headers, data, _, _ = layers(middle, "data.transfer.examples=0.6")
    assert len(middle.asked) == 2 * len(data.distilled), "the vectors of the first rows were missing"
    whole = Seen()
    folders, headers, everything, _, _ = layers(whole)
    assert not set(row for row, _ in whole.asked) & set(data.distilled.tolist()) and set(few) < set(data.distilled.tolist())
    for tap, folder in folders.items():
        assert len(Reader(folder, headers[tap])) == 2 * len(everything.distilled) == describe(folder)["parts"]["main"]["rows"]


def test_a_cancelled_recording_of_layers_goes_on(layers):
    teacher = Seen()
    with pytest.raises(Interrupted):
        layers(teacher, "data.split.test=0.3", cancel=lambda: True)
    rest = Seen()
    _, _, data, _, _ = layers(rest, "data.split.test=0.3")
    assert teacher.asked and not set(teacher.asked) & set(rest.asked) and len(teacher.asked) + len(rest.asked) == 2 * len(data.distilled)


def test_live_layers_are_not_recorded(layers, tmp_path):
    teacher = Seen()
    folders, headers, *_, events = layers(teacher, "store.features=live")
    assert folders == headers == {} and teacher.asked == [] and events == [] and not (tmp_path / "cache").exists()


def test_a_teacher_that_does_not_give_the_layer_is_refused(layers):
    with pytest.raises(DataError, match="layer vector does not fit the store: got no such feature"):
        layers(Seen(tell=("map",)))


def test_an_example_whose_layer_is_not_finite_is_left_out(layers, make):
    """Prevents: a layer that overflows where the logits do not stops the run, or is learnt from."""
    row = int(layers(Seen(), "data.split.test=0.1", "store.features=int8")[2].distilled[7])
    folders, _, data, tree, _ = layers(Seen("broken", broken=[row]), "data.split.test=0.1")
    assert Reader(folders["map"]).quarantined == {(data.names[row], 1), (data.names[row], 2)} and not Reader(folders["vector"]).quarantined
    answers, header, *_ = make(Seen("broken"), *PICTURES, "data.split.test=0.1")
    kept = record.without_quarantined(answers, header, data, folders)
    assert row not in kept.distilled and len(kept.distilled) == len(data.distilled) - 1 and "1 examples" in kept.notes[-1]
    learnt = record.learn_from(answers, header, kept, tree, folders)
    for batch in kept.rows.batches(kept.distilled, 300, data.views, 2):
        assert torch.isfinite(learnt.teach(batch).features["map"]).all()


def test_layers_that_overflow_float16_say_what_to_do(layers):
    with pytest.raises(DataError, match="beyond 65,504.*int8 or float32"):
        layers(Seen(large=1e6))
    layers(Seen(large=1e6), "store.features=int8")


def test_too_large_layers_are_refused_before_anything_is_written(layers, toy, tmp_path):
    """Prevents: a disk that fills up in the middle of a recording; and a refusal that counts what is there already."""
    from understudy import recipe

    wanted = toy.recipe(*PICTURES)
    data, tree = prepare(wanted, Given()), recipe.resolved(wanted)
    headers = record.feature_headers(tree, data, Taught(Seen(), Size(1, 4), []), SHAPES, RIGHTS)
    needed = 2 * (108 + 10) * 2 * len(data.distilled)
    cache = Cache(tmp_path / "nowhere" / "cache")
    assert record.feature_bytes(headers, record.feature_rows(data)) == needed
    record.refuse_too_large(headers, data, needed / 1e9, needed)
    with pytest.raises(DataError, match=r"at most .* GB \(store.limit_gb\).*int8, fewer data.augment.views, fewer layers.*live") as error:
        record.refuse_too_large(headers, data, (needed - 1) / 1e9, 10**15)
    assert error.value.exit_code == 3 and "216 bytes a row of map" in str(error.value)
    with pytest.raises(DataError, match=r"\(free on the disk\)"):
        record.refuse_too_large(headers, data, 8.0, needed - 1)
    record.refuse_too_large({}, data, 1e-9, 0)
    free = record.room(headers, cache)
    assert free > 0 and not (tmp_path / "nowhere").exists()
    folders = layers(Seen())[0]
    there = sum(path.stat().st_size for folder in folders.values() for path in folder.rglob("*") if path.is_file())
    gained = record.room(headers, Cache(tmp_path / "cache")) - record.room({}, Cache(tmp_path / "cache"))
    assert there >= needed and abs(gained - there) < 2**20


def test_what_students_depend_on_names_the_layers(layers):
    """Prevents: a student that learnt from int8 layers given to a recipe that asks for float32 ones; and old students trained again."""
    headers = layers(Seen())[1]
    answers = next(iter(headers.values()))
    alone = record.identity(answers)
    assert alone == record.identity(answers, {}) == record.digest(answers.identity())
    rounded = layers(Seen(), "store.features=int8")[1]
    found = {alone, *(record.identity(answers, some) for some in (headers, rounded, {"map": headers["map"]}))}
    assert len(found) == 4


def test_terms_on_layers_leave_the_temperatures_of_the_others_ready(toy):
    from understudy import recipe

    tree = recipe.resolved(toy.recipe())
    assert record.sufficient_temperatures(tree) == (2.0,)
    tree["objective"].append({"kind": "features.Hint"})
    assert record.sufficient_temperatures(tree) == (2.0,)
    assert record.sufficient_temperatures({**tree, "teacher_weights": "learnt"}) is None, "found from the members' rows"
    tree["objective"].append({"kind": "logits.MSE"})
    assert record.sufficient_temperatures(tree) is None
    tree["objective"] = [{"kind": "features.Hint"}, {"kind": "labels.CrossEntropy"}]
    assert record.sufficient_temperatures(tree) is None, "the self-test reads logits"
