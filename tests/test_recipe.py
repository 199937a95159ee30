"""recipe.py: what is written is what is run, and what is not known is refused with its place."""

from __future__ import annotations

import copy
import dataclasses
import json
import re

import pytest
import yaml
from pydantic import BaseModel

from understudy import kinds, recipe, sections
from understudy.errors import RecipeError
from understudy.rights.terms import Rights
from understudy.tree import Loader

TEXT = """\
name: small
data:
  kind: builtin
  name: digits
  split: {validation: 0.1, test: 0.5}
teacher:
  kind: local
  model: {arch: cnn, width: 8}
  train:
    epochs: 2
  rights: {terms: own}
student:
  model:
    arch: mlp
    hidden: [8]
objective:
  - {kind: logits.SoftTargets, temperature: 4.0, weight: 0.9}
  - kind: labels.CrossEntropy
    weight: 0.1
training:
  epochs: 3
"""


def tree(**changes):
    """The recipe above with dotted keys changed."""
    found = yaml.safe_load(TEXT)
    for key, value in changes.items():
        here = found
        *parents, last = key.split("__")
        for part in parents:
            here = here[int(part)] if isinstance(here, list) else here.setdefault(part, {})
        here[last] = value
    return found


def load(text, tmp_path, *overrides):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return recipe.load(path, overrides)


def refused(text, tmp_path, *overrides):
    with pytest.raises(RecipeError) as error:
        load(text, tmp_path, *overrides)
    return str(error.value)


def four_parts(message):
    """What is wrong: got ..., expected ... . What would have happened. What to do."""
    return re.fullmatch(r"(?s).+: got .+, expected .+\. .+[.?]", message) is not None


# --- complete and the same again


@pytest.mark.parametrize("name", sorted(recipe.packaged()))
def test_packaged_recipes_load_and_come_back_from_their_resolved_text(name, tmp_path):
    """Prevents: `understudy run runs/x/recipe.yaml` is not the run that it was written by."""
    found = recipe.load(name)
    assert found.name == name
    again = load(recipe.to_yaml(recipe.resolved(found)), tmp_path)
    assert again == found and recipe.resolved(again) == recipe.resolved(found)


def test_the_resolved_recipe_is_complete():
    """Prevents: a default that changes with a version changes what an old recipe means."""
    found = recipe.resolved(recipe.load(tree()))
    assert set(found) == set(recipe.Recipe.model_fields)
    assert set(found["training"]) == set(sections.StudentTraining.model_fields)
    assert set(found["teacher"][0]["train"]) == set(sections.Training.model_fields)
    for folder, spec, name in (
        ("datasets", found["data"], "kind"),
        ("models", found["student"]["model"], "arch"),
        ("teachers", found["teacher"][0], "kind"),
        ("objectives", found["objective"][1], "kind"),
    ):
        assert {field.name for field in dataclasses.fields(kinds.find(folder, spec[name]))} <= set(spec)
    assert found["objective"][0]["temperature"] == 4.0


@pytest.mark.parametrize(
    "words",
    [
        ("1e3", "08", "1_000", "0x1f", "12:30", "no", "null", "~", "2024-01-01", "true", ".5", "=", "<<", "1e-3"),
        ("ü", "a: b", "- x", "#", "'", '"', "\x1b[31m", "caf\udce9", "\u202e", " x ", "a\nb"),
    ],
)
def test_any_text_survives_the_resolved_file(words, tmp_path):
    """Prevents: a class named "1e3" or "08" is a number when the run's own recipe.yaml is read again."""
    found = recipe.load(tree(data__transfer={"omit": list(words)}))
    again = load(recipe.to_yaml(recipe.resolved(found)), tmp_path)
    assert again.data.transfer.omit == words and again == found


def test_a_recipe_is_frozen():
    found = recipe.load(tree())
    for part in (found, found.data, found.training, found.teacher[0], found.student, found.store):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, next(iter(type(part).model_fields)), None)


def test_the_mapping_that_was_given_stays_as_it_is():
    given = tree()
    before = copy.deepcopy(given)
    recipe.load(given, ["training.epochs=9", "teacher.train.epochs=7", "objective.0.weight=2"])
    assert given == before


# --- every field is used

OTHER = {
    sections.Recipe: {
        "name": "other",
        "data": {"kind": "builtin", "name": "iris"},
        "teacher": {"kind": "stored", "path": "x"},
        "teacher_weights": [1, 2],
        "student": {"model": {"arch": "linear"}},
        "objective": {"kind": "logits.MSE"},
        "training": {"epochs": 4},
        "metric": "macro_f1",
        "metric_weights": {"3": 2.0},
        "store": {"keep": "topk"},
        "compress": {"quantize": {"epochs": 1}},
        "export": ["onnx"],
        "gates": {"min_kept": 0.5},
        "draft": {"prompts": 9},
        "profiles": {"phone": {"memory_mb": 9}},
        "robustness": {"rows": 9},
        "series": {"key": "training.epochs", "values": [1, 2]},
        "sweep": {"over": {"training.lr": [0.1, 0.2]}},
    },
    sections.Data: {"kind": "idx", "split": {"test": 0.2}, "augment": {"crop": 1}, "transfer": {"labels": 0.5}, "groups": {"3": "round"}},
    sections.Split: {"copies": "drop", "validation": 0.3, "test": 0.3, "seed": 5},
    sections.Augment: {"crop": 1, "flip": True, "jitter": 1, "noise": 0.1, "views": 2},
    sections.Transfer: {
        "source": "generated", "generator": {"latent": 5}, "rollouts": {"share": 0.9}, "examples": 0.5,
        "labels": 0.5, "omit": ["3"], "only": ["7"]},
    sections.Generator: {
        "latent": 5, "width": 7, "lr": 0.5, "one_hot": 0.5, "activation": 0.5, "information": 0.5, "statistics": 0.5, "adversarial": 0.5},
    sections.Rollouts: {"share": 0.25, "after": 0.5, "prompt": 5, "tokens": 7, "temperature": 0.5, "reuse": 3},
    sections.Compress: {"quantize": {"epochs": 1}},
    sections.Quantize: {"epochs": 1, "lr": 0.5, "calibration": 99},
    sections.Draft: {"prompts": 9, "prompt": 5, "tokens": 7, "ahead": 2},
    sections.Profile: {"memory_mb": 9.0, "cores": 2, "budget_ms": 3.0, "wire_bytes": 70.0, "model_mb": 0.5, "artefact": "student"},
    sections.Robustness: {"shifts": ["noise"], "severities": [2], "rows": 9},
    sections.StudentTraining: {
        "epochs": 7,
        "steps": 11,
        "batch_size": 9,
        "optimizer": "sgd",
        "lr": 0.5,
        "weight_decay": 0.1,
        "momentum": 0.5,
        "nesterov": True,
        "schedule": "step",
        "milestones": [0.1],
        "warmup": 0.1,
        "clip": 1.0,
        "ema": 0.9,
        "patience": 3,
        "augment": False,
        "precision": "bfloat16",
        "memory_format": "channels_last",
        "compile": True,
        "seeds": 4,
        "balance": "gradnorm",
        "control": "none",
        "control_reason": "why",
        "class_weights": "balanced",
        "threads": 2,
    },
    sections.Teacher: {"kind": "stored", "rights": {"terms": "allowed"}, "stated": {"accuracy": 0.9}},
    Rights: {"terms": "allowed", "licence": "MIT", "basis": "b", "source": "s"},
    sections.Student: {"model": {"arch": "linear"}, "weights": "w.safetensors", "match_prior": ["3"], "from_teacher": {"layers": 1},
                     "tokenizer": {"kind": "words"}},
    sections.Reader: {"kind": "folder", "path": "x", "size": 500, "lowercase": False, "length": 9,
                    "corpus": {"pattern": "json/*.py"}},
    sections.FromTeacher: {"layers": [0, 2], "width": 8, "heads": 2, "inner": 4, "importance": "taylor", "static": 4,
                          "prune": {"share": 0.5}},
    sections.Prune: {"share": 0.5, "parameters": 0.5, "macs": 0.5, "importance": "taylor", "iterations": 2, "keep": ["conv1"], "depth": 8},
    sections.Store: {"keep": "topk", "token_bytes": 99, "dtype": "float16", "k": 3, "features": "int8", "limit_gb": 0.5},
    sections.Series: {"key": "training.lr", "values": [0.1, 0.2], "folds": True},
    sections.Sweep: {"method": "random", "over": {"training.lr": [0.1, 0.2]}, "trials": 3, "eta": 2, "seeds": 5},
}
WHERE = {
    sections.Data: "data",
    sections.Compress: "compress",
    sections.Split: "data__split",
    sections.Augment: "data__augment",
    sections.Transfer: "data__transfer",
    sections.Generator: "data__transfer__generator",
    sections.Rollouts: "data__transfer__rollouts",
    sections.StudentTraining: "training",
    sections.Teacher: "teacher",
    Rights: "teacher__rights",
    sections.Student: "student",
    sections.Reader: "student__tokenizer",
    sections.Store: "store",
    sections.Profile: "profiles__phone",
}


def test_the_table_of_other_values_names_every_field_of_every_section():
    """Prevents: a new field that no test ever changes."""
    found = {
        item for item in vars(sections).values() if isinstance(item, type) and issubclass(item, BaseModel) and item is not sections.Part
    }
    assert found - {sections.Training, BaseModel} == set(OTHER) - {Rights}
    for section, values in OTHER.items():
        known = section.model_fields if issubclass(section, BaseModel) else {field.name for field in dataclasses.fields(section)}
        assert set(values) == set(known), section


CHANGES = [(section, name, value) for section, values in OTHER.items() if section in WHERE for name, value in values.items()]


@pytest.mark.parametrize(("section", "name", "value"), CHANGES, ids=[f"{section.__name__}.{name}" for section, name, _ in CHANGES])
def test_every_field_changes_the_resolved_record(section, name, value):
    """Prevents: a setting that is accepted and dropped."""
    extra = {
        "data__kind": {"data": {"kind": "idx", "path": "x"}},
        "student__from_teacher": {"student": {"from_teacher": {"layers": 1}}},
        "teacher__kind": {"teacher": {"kind": "stored", "path": "x"}},
        "training__control": {"training__control_reason": "a reason", "training__control": "none"},
    }
    key = f"{WHERE[section]}__{name}"
    missing = section in (sections.Augment, sections.Profile)  # these stand in no recipe by default
    base = tree(**({WHERE[section]: {}} if missing else {}))
    changed = tree(**({WHERE[section]: {}} if missing else {}) | extra.get(key, {key: value}))
    before, after = recipe.resolved(recipe.load(base)), recipe.resolved(recipe.load(changed))
    assert before != after
    dotted = key.replace("__", ".").replace("teacher.", "teacher.0.")
    assert any(found == dotted or found.startswith(f"{dotted}.") for found in recipe.changed(before, after)), recipe.changed(before, after)


@pytest.mark.parametrize(
    "name", sorted(set(OTHER[sections.Recipe]) - {"data", "teacher", "student", "objective", "training", "store", "gates"})
)
def test_every_top_level_field_changes_the_resolved_record(name):
    base = {"teacher": [tree()["teacher"]] * 2} if name == "teacher_weights" else {}
    before, after = (recipe.resolved(recipe.load(tree(**base, **more))) for more in ({}, {name: OTHER[sections.Recipe][name]}))
    assert name in {key.partition(".")[0] for key in recipe.changed(before, after)}


@pytest.mark.parametrize("name", sorted(sections.Training.model_fields))
def test_every_field_of_a_teachers_training_changes_the_resolved_record(name):
    value = OTHER[sections.StudentTraining][name]
    before, after = (recipe.resolved(recipe.load(given)) for given in (tree(), tree(**{f"teacher__train__{name}": value})))
    assert recipe.changed(before, after) == [f"teacher.0.train.{name}"]


# --- typos

TYPOS = [
    ("name: small", "nmae: small", "name", "r.yaml:1"),
    ("  kind: builtin", "  kind: buildin", "builtin", "r.yaml:3"),
    ("  name: digits", "  nam: digits", "name", "r.yaml:4"),
    ("  split: {v", "  slpit: {v", "split", "r.yaml:5"),
    ("{validation: 0.1", "{validaton: 0.1", "validation", "r.yaml:5"),
    ("  kind: local", "  kind: locla", "local", "r.yaml:7"),
    ("arch: cnn,", "arch: cn,", "cnn", "r.yaml:8"),
    ("width: 8", "widht: 8", "width", "r.yaml:8"),
    ("    epochs: 2", "    epohcs: 2", "epochs", "r.yaml:10"),
    ("  rights:", "  rihgts:", "rights", "r.yaml:11"),
    ("{terms:", "{term:", "terms", "r.yaml:11"),
    ("terms: own", "terms: owned", "own", "r.yaml:11"),
    ("student:\n", "studnet:\n", "student", "r.yaml:12"),
    ("  model:\n", "  modle:\n", "model", "r.yaml:13"),
    ("    arch: mlp", "    arch: mpl", "mlp", "r.yaml:14"),
    ("    hidden:", "    hiden:", "hidden", "r.yaml:15"),
    ("logits.SoftTargets", "logits.SoftTarget", "logits.SoftTargets", "r.yaml:17"),
    ("temperature:", "temprature:", "temperature", "r.yaml:17"),
    ("    weight: 0.1", "    wieght: 0.1", "weight", "r.yaml:19"),
    ("  epochs: 3", "  epoch: 3", "epochs", "r.yaml:21"),
    ("training:", "trainig:", "training", "r.yaml:20"),
]


@pytest.mark.parametrize(("right", "wrong", "near", "place"), TYPOS, ids=[wrong.strip() for _, wrong, _, _ in TYPOS])
def test_a_typo_names_the_nearest_word_with_file_and_line(right, wrong, near, place, tmp_path):
    """Prevents: a typo that trains with the default, and a message that leaves the reader searching the file."""
    assert right in TEXT
    message = refused(TEXT.replace(right, wrong, 1), tmp_path)
    assert message.endswith((f'Did you mean "{near}"?', f'Write "{near}".')), message
    assert place in message, message
    assert four_parts(message), message


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("store: {kep: topk}", "keep"),
        ("gates: {min_keep: 0.9}", "min_kept"),
        ("series: {key: training.lr, value: [1, 2]}", "values"),
        ("export: [safetensor]", "safetensors"),
        ("export: [safetensors, onx]", "onnx"),
        ("export: [{kind: onnx, tolerence: 1e-3}]", "tolerance"),
    ],
)
def test_a_typo_in_the_smaller_sections(line, place, tmp_path):
    message = refused(TEXT + line + "\n", tmp_path)
    assert f'"{place}"' in message.split("Did you mean")[1] and "r.yaml:22" in message and four_parts(message)


@pytest.mark.parametrize("section", ["augment: {crp: 1}", "transfer: {exampels: 0.5}"])
def test_a_typo_in_the_sections_of_data(section, tmp_path):
    message = refused(TEXT.replace("teacher:\n", f"  {section}\nteacher:\n", 1), tmp_path)
    assert "r.yaml:6" in message and "Did you mean" in message


def test_a_typo_in_what_is_stated_of_a_teacher(tmp_path):
    """Prevents: the stated accuracy that the self-test should compare is never looked at."""
    message = refused(TEXT.replace("  rights:", "  stated: {acuracy: 0.9}\n  rights:", 1), tmp_path)
    assert message.endswith('Did you mean "accuracy"?') and "r.yaml:11" in message and four_parts(message)


def test_a_missing_kind_is_said_where_it_is_missing(tmp_path):
    message = refused(TEXT.replace("  kind: local\n", "", 1), tmp_path)
    assert "teacher" in message and "kind" in message and four_parts(message)
    message = refused(TEXT.replace("  - kind: labels.CrossEntropy\n    weight", "  - weight", 1), tmp_path)
    assert "objective" in message and "kind" in message and "r.yaml:18" in message


# --- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-3", 0.003),
        ("3E-3", 0.003),
        ("+1e2", 100.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("5", 5),
        ("-5", -5),
        ("no", "no"),
        ("No", "No"),
        ("off", "off"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("12:30", "12:30"),
        ("2024-01-01", "2024-01-01"),
        ("08", 8),
        ("1e3", 1000.0),
        ("'1e3'", "1e3"),
        ("e3", "e3"),
        (".", "."),
        ("-", "-"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value, tmp_path):
    """Prevents: `lr: 3e-3` is a text (YAML 1.1), `no` is silently false, a date is no text."""
    (tmp_path / "x.yaml").write_text(f"x: [{text}, 1]" if text != "-" else "x: ['-', 1]")
    [found, _] = yaml.load((tmp_path / "x.yaml").read_text(), Loader=Loader)["x"]
    assert found == value and type(found) is type(value)


BAD = {
    "lr": "0 -1 .inf .nan", "epochs": "0 .inf .nan null", "batch_size": "0 1.5", "warmup": "1 .nan", "weight_decay": "-1 .inf", "clip": "0",
    "ema": "1", "patience": "0", "steps": "0", "seeds": "0 many -3 true 2.5", "threads": "0 -1", "optimizer": "adam", "schedule": "cos",
    "control": "no", "class_weights": "balance", "augment": "maybe", "milestones": "3 [.nan]", "momentum": "1"}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values.split()])
def test_values_out_of_range_are_refused_with_their_line(name, value, tmp_path):
    """Prevents: a NaN or a negative rate that is only seen as a student that answers one class."""
    message = refused(TEXT.replace("  epochs: 3\n", f"  {name}: {value}\n"), tmp_path)
    assert "r.yaml:21" in message and f"training.{name}" in message and four_parts(message), message


def test_control_none_needs_a_reason(tmp_path):
    message = refused(TEXT + "  control: none\n", tmp_path)
    assert "reason" in message and "r.yaml:22" in message and four_parts(message)
    assert load(TEXT + "  control: none\n  control_reason: too dear\n", tmp_path).training.control_reason == "too dear"


@pytest.mark.parametrize("metric", ["acuracy", "r2"])
def test_an_unknown_metric_is_refused(metric, tmp_path):
    """Prevents: a run that trains for an hour and then does not know what to measure."""
    message = refused(TEXT + f"metric: {metric}\n", tmp_path)
    assert "accuracy" in message and "r.yaml:22" in message and four_parts(message)


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101, "a b", "a\nb"])
def test_a_name_can_not_leave_the_runs_folder(name):
    with pytest.raises(RecipeError, match="name"):
        recipe.load(tree(name=name))


# --- overrides


def test_overrides(tmp_path):
    found = load(
        TEXT,
        tmp_path,
        "training.epochs=5",
        "training.lr=3e-3",
        "name=other",
        "objective.1.weight=0.5",
        "gates.min_kept=0.9",
        "student.model.hidden=[4, 4]",
        "teacher.train.epochs=7",
        "export=[]",
        "data.augment.jitter=1",
        "metric=macro_f1",
        "data.transfer.omit=[no, '3']",
    )
    assert (found.training.epochs, found.training.lr, found.name, found.metric) == (5.0, 0.003, "other", "macro_f1")
    assert [entry["weight"] for entry in found.objective] == [0.9, 0.5]
    assert found.gates == {"min_kept": 0.9} and found.student.model["hidden"] == [4, 4] and found.export == ()
    assert found.teacher[0].options["train"]["epochs"] == 7 and found.data.augment.jitter == 1
    assert found.data.transfer.omit == ("no", "3")


def test_an_export_is_a_name_or_a_mapping_and_is_written_out(tmp_path):
    """Prevents: an option of a format that is read and dropped."""
    found = load(TEXT, tmp_path, "export=[safetensors, {kind: onnx, tolerance: 1e-3}]")
    assert found.export[0] == {"kind": "safetensors"} and found.export[1]["tolerance"] == 1e-3
    assert recipe.load(recipe.resolved(found)) == found
    for text, why in (("[onnx, {kind: onnx}]", "twice"), ("[{tolerance: 1e-3}]", "has no kind"), ("[{kind: onnx, tolerance: 2}]", "2.0")):
        with pytest.raises(RecipeError, match=why):
            load(TEXT, tmp_path, f"export={text}")


def test_an_override_reaches_into_a_list_and_into_a_lone_entry(tmp_path):
    """Prevents: teacher.0.x works for a list of teachers only, though every message and the resolved recipe write it so."""
    for text in (TEXT, recipe.to_yaml(recipe.resolved(recipe.load(tree())))):
        assert load(text, tmp_path, "teacher.0.train.epochs=7").teacher[0].options["train"]["epochs"] == 7
    alone = TEXT.replace(
        "  - {kind: logits.SoftTargets, temperature: 4.0, weight: 0.9}\n  - kind: labels.CrossEntropy\n    weight: 0.1\n",
        "  kind: logits.SoftTargets\n",
    )
    assert load(alone, tmp_path, "objective.0.temperature=2").objective[0]["temperature"] == 2.0


def test_an_override_of_an_alias_changes_one_place(tmp_path):
    """Prevents: a change to one member of an ensemble that is written with an alias changes all of them, or none."""
    text = TEXT.replace(
        "teacher:\n  kind: local\n  model: {arch: cnn, width: 8}\n  train:\n    epochs: 2\n  rights: {terms: own}\n",
        "teacher:\n  - &one {kind: local, model: {arch: cnn, width: 8}, train: {epochs: 2}}\n  - *one\n  - *one\n",
    )
    found = load(text, tmp_path, "teacher.1.train.epochs=9")
    assert [teacher.options["train"]["epochs"] for teacher in found.teacher] == [2, 9, 2]
    assert [teacher.options["seed"] for teacher in found.teacher] == [0, 1, 2]


def test_an_override_below_a_null_is_kept(tmp_path):
    """Prevents: on a resolved recipe, where augment and series are null, data.augment.jitter=2 changes nothing and says nothing."""
    text = recipe.to_yaml(recipe.resolved(recipe.load(tree())))
    assert "augment: null" in text
    assert load(text, tmp_path, "data.augment.jitter=2").data.augment.jitter == 2
    assert load(TEXT + "gates:\n", tmp_path, "gates.min_kept=0.5").gates == {"min_kept": 0.5}


@pytest.mark.parametrize(
    "override",
    [
        "training",
        "=5",
        "training.epochs.more=1",
        "objective.2.weight=1",
        "objective.x.weight=1",
        "objective.-1.weight=1",
        "name.x=1",
        "training.epochs=",
        "training..epochs=3",
        "trainin.epochs=3",
    ],
)
def test_an_override_that_would_change_nothing_is_refused(override, tmp_path):
    assert four_parts(refused(TEXT, tmp_path, override))


def test_the_message_for_an_override_names_the_override(tmp_path):
    """Prevents: a line of the file is blamed that says nothing of the kind."""
    message = refused(TEXT, tmp_path, "training.epochz=3")
    assert message.startswith("the override training.epochz=3: ") and "epochs" in message and "r.yaml" not in message
    assert refused(TEXT, tmp_path, "training.epochs=3", "training.epochs=-3").startswith("the override training.epochs=-3: training.epochs")
    for override in ("objective.weight=heavy", "objective.0.weight=heavy", "objective=[{kind: labels.CrossEntropy, weight: heavy}]"):
        message = refused(TEXT.partition("objective")[0] + "objective: {kind: labels.CrossEntropy}\n", tmp_path, override)
        assert f"the override {override}: objective" in message, message
    both = ("objective=[{kind: labels.CrossEntropy}]", "objective.0.weight=heavy")
    assert both[1] in refused(TEXT, tmp_path, *both), "the part that was changed last"
    assert refused(TEXT, tmp_path, "training.epochs=-3", "training={epochs: -5}").startswith("the override training={epochs: -5}: ")
    assert refused(TEXT + "metric: no\n", tmp_path, "training.epochs=3").startswith(f"{tmp_path}/r.yaml:22: ")


# --- the file


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: [1", ":"),
        ("a: b: c", ":1"),
        ("x: 1\n\ty: 2", ":2"),
        ("- 1\n- 2", ""),
        ("", ""),
        ("just words", ""),
        ("a: !!python/object:os.system {}", ":1"),
        ("a: *nobody", ":1"),
        ("---\na: 1\n---\nb: 2", ":"),
        ("a: &x [*x]", ""),
        ("a: &x {b: *x}", ""),
        ("? [1, 2]\n: 3", ""),
        ("\x00", ""),
    ],
)
def test_unreadable_yaml_is_refused(text, place, tmp_path):
    message = refused(text, tmp_path)
    assert f"r.yaml{place}" in message and four_parts(message), message


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "r.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(RecipeError, match=r"r\.yaml"):
        recipe.load(tmp_path / "r.yaml")


def test_a_key_that_is_written_twice_is_refused(tmp_path):
    """Prevents: of two values of one key the first is dropped without a word."""
    message = refused(TEXT + "  epochs: 30\n", tmp_path)
    assert "twice" in message and "epochs" in message and "r.yaml:22" in message and four_parts(message)


def test_a_missing_file_names_the_nearest_packaged_recipe(tmp_path):
    with pytest.raises(RecipeError, match='Did you mean "digits"') as error:
        recipe.load("digit")
    assert "neither a file nor a packaged recipe" in str(error.value)
    for path, said in (
        (tmp_path, "is a folder"),
        (tmp_path / "nosuch", "there is no file"),
        ("nosuch.yaml", "there is no file"),
        ("digits.yaml", 'there is no file "digits.yaml".*or use the packaged recipe "digits"'),
    ):
        with pytest.raises(RecipeError, match=said) as error:
            recipe.load(path)
        assert four_parts(str(error.value)) and "hinton_mnist" not in str(error.value), "the list of all recipes hides what is wrong"


def test_a_packaged_name_is_not_hidden_by_a_folder(tmp_path, monkeypatch):
    """Prevents: `understudy run digits` fails in a folder that holds a folder `digits`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert recipe.load("digits").name == "digits"


# --- series, schema, changed


def test_a_series_has_one_recipe_a_value():
    found = recipe.members(recipe.load(tree(series={"key": "data.transfer.labels", "values": [0.1, 1.0]})))
    assert [(one.name, one.data.transfer.labels, one.series) for one in found] == [("labels-0.1", 0.1, None), ("labels-1.0", 1.0, None)]
    with pytest.raises(RecipeError, match="Did you mean"):
        recipe.members(recipe.load(tree(series={"key": "data.transfer.label", "values": [0.1, 1.0]})))


def test_members_of_a_series_never_share_a_folder():
    """Prevents: two values whose names look alike as a folder's name end up in one run."""
    with pytest.raises(RecipeError, match="same"):
        recipe.members(recipe.load(tree(series={"key": "data.transfer.omit", "values": [["a/b"], ["a_b"]]})))


def test_changed_keys():
    base = recipe.resolved(recipe.load(tree()))
    other = recipe.resolved(
        recipe.load(tree(), ["training.lr=0.5", "objective.0.temperature=2", "teacher.train.epochs=9", "data.split.seed=4"])
    )
    assert recipe.changed(base, other) == ["data.split.seed", "teacher.0.train.epochs", "objective.0.temperature", "training.lr"]
    assert recipe.changed(base, base) == []
    settled = copy.deepcopy(base)
    settled["training"]["seeds"], settled["metric"] = 3, "accuracy"
    assert recipe.changed(settled, base) == [], "an auto that was settled since is no change"
    assert recipe.changed(base, settled) == ["training.seeds", "metric"]
    longer = recipe.resolved(recipe.load(tree(), ["objective=[{kind: logits.MSE}]"]))
    assert recipe.changed(base, longer) == ["objective"]


def valid(value, schema, root):
    """Whether JSON Schema allows the value; the part of it that pydantic writes."""
    if "$ref" in schema:
        here = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            here = here[part]
        return valid(value, here, root)
    for word in ("anyOf", "oneOf"):
        if word in schema and not any(valid(value, option, root) for option in schema[word]):
            return False
    known = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int, "number": (int, float)}
    if "type" in schema and (
        not isinstance(value, known[schema["type"]]) or (schema["type"] in ("integer", "number") and isinstance(value, bool))
    ):
        return False
    if ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        return False
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        rest = schema.get("additionalProperties", True)
        return set(schema.get("required", ())) <= set(value) and all(
            valid(item, properties[key], root) if key in properties else (rest is not False and (rest is True or valid(item, rest, root)))
            for key, item in value.items()
        )
    if isinstance(value, list):
        return schema.get("minItems", 0) <= len(value) and all(valid(item, schema.get("items", {}), root) for item in value)
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and value > schema.get("exclusiveMinimum", float("-inf"))
            and value < schema.get("exclusiveMaximum", float("inf"))
        )
    return True


@pytest.fixture(scope="module")
def schema():
    return json.loads(json.dumps(recipe.json_schema()))


@pytest.mark.parametrize("name", sorted(recipe.packaged()))
def test_the_schema_allows_the_packaged_recipes(schema, name):
    """Prevents: an editor that marks a good recipe as wrong."""
    written = yaml.load(recipe.packaged()[name].read_text(), Loader=Loader)
    assert valid(written, schema, schema)
    assert valid(recipe.resolved(recipe.load(name)), schema, schema)
    assert not valid({**written, "trainig": {}}, schema, schema) and not valid({**written, "name": "a/b"}, schema, schema)
    assert not valid({**written, "training": {"epochs": "many"}}, schema, schema)


def test_every_reference_of_the_schema_leads_somewhere(schema):
    """Prevents: an editor that refuses the whole schema because a kind's part of it points to nothing."""
    found = []

    def walk(value):
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found.append(value["$ref"])
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(schema)
    assert found and all(ref.removeprefix("#/$defs/") in schema["$defs"] for ref in found), found
    for folder in ("datasets", "models", "teachers"):
        assert {f"{folder}.{name}" for name in kinds.names(folder)} <= set(schema["$defs"])
    assert {f"objectives.{name}" for name in kinds.objective_names()} <= set(schema["$defs"])


# --- own code


def test_a_factory_is_an_address_and_nothing_else():
    found = recipe.load(tree(student__model={"factory": "my.models:student", "options": {"width": 3}}))
    assert found.student.model == {"factory": "my.models:student", "options": {"width": 3}}
    for bad in ("os.system", "os:system('x')", "a b:c", "", 5, "x:y\n"):
        with pytest.raises(RecipeError, match="factory"):
            recipe.load(tree(student__model={"factory": bad}))
    with pytest.raises(RecipeError, match="factory"):
        recipe.load(tree(student__model={"factory": "a:b", "arch": "mlp"}))


def test_reading_a_recipe_runs_nothing(tmp_path):
    """Prevents: YAML tags that make Python objects."""
    marker = tmp_path / "ran"
    assert "YAML" in refused(f"name: !!python/object/apply:os.mkdir [{marker}]", tmp_path)
    assert not marker.exists()
