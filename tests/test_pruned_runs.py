"""Students that are pruned out of their teacher, end to end at toy size."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from understudy import pipeline, recipe
from understudy.errors import DataError, Interrupted, RecipeError
from understudy.evaluation.cost import multiply_accumulates, parameters
from understudy.stages import derive, prune
from understudy.stages.common import make_model
from understudy.stages.prepare import Given, prepare
from understudy.students import artefact

pytest.importorskip("torch_pruning", reason="needs torch-pruning")
NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
DIGITS = "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}}"
TRAIN = f"train: {{epochs: 4, lr: 1e-2, batch_size: 64, {NUMERICS}}}"
CNN = f"teacher={{kind: local, model: {{arch: cnn, width: 8}}, rights: {{terms: own}}, {TRAIN}}}"


def pruned(wanted):
    return f"student={{from_teacher: {{prune: {wanted}}}}}"


def still(steps=1):
    """Students that all but stand still."""
    return f"training={{steps: {steps}, batch_size: 64, lr: 1e-9, seeds: 2, threads: 1, {NUMERICS}}}"


def settled(toy, *overrides):
    """(the resolved recipe with its student's model, the data)."""
    wanted = toy.recipe(*overrides)
    tree, data = recipe.resolved(wanted), prepare(wanted, Given())
    derive.settle_student(tree, data)
    return tree, data


@pytest.mark.slow
def test_from_the_recipe_to_a_student_that_needs_nothing_but_its_folder(toy, tmp_path):
    run = toy.run(DIGITS, CNN, pruned("{share: 0.5, importance: activation}"), "training={epochs: 2, batch_size: 64, lr: 3e-3, seeds: 2}",
                  "export=[safetensors, onnx]")  # fmt: skip
    arms, said = run.summary["arms"], run.summary["pruned"]
    assert set(arms) == {"control", "distilled"} and said["ci95"][0] < said["value"] < said["ci95"][1]
    assert arms["distilled"]["mean"] > said["value"], "both have learnt again"
    assert run.remarks == [run.details["pruned"]["sentence"]] and run.remarks[0].startswith("Pruned alone, before it learnt again")
    assert run.remarks[0] in (run.path / "report.html").read_text(encoding="utf-8")
    assert run.summary["parameters_ratio"] == pytest.approx(arms["distilled"]["parameters"] / run.summary["teacher"]["parameters"])
    config = json.loads((run.path / "student" / "config.json").read_text())
    assert config["model"]["sizes"]["convs.2"] == [8, 4] and run.details["size"]["macs_ratio"] < 0.3

    rows = np.random.default_rng(0).integers(0, 17, (3, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "rows.npy", rows)
    code = ("import sys; sys.modules['torch_pruning'] = None; import numpy, understudy; student, rows = sys.argv[1:]; "
            "print(understudy.load(student).predict(numpy.load(rows)).argmax(1).tolist())")  # fmt: skip
    words = [sys.executable, "-c", code, str(run.path / "student"), str(tmp_path / "rows.npy")]
    alone = subprocess.run(words, capture_output=True, text=True, check=True)
    assert json.loads(alone.stdout) == run.student.predict(rows).argmax(1).tolist()
    assert [row["format"] for row in run.details["exports"]] == ["safetensors", "onnx"]


@pytest.mark.slow
def test_both_arms_start_as_what_is_left_and_the_line_is_about_that(toy):
    teacher = CNN.replace("width: 8", "width: 8, norm: none")  # batch norm's statistics move without a step of the weights
    run = toy.run(DIGITS, teacher, pruned("0.5"), still())
    arms, said = run.summary["arms"], run.summary["pruned"]
    assert arms["control"]["seeds"] == arms["distilled"]["seeds"] == [said["value"]] * 2
    again = toy.run(DIGITS, teacher, pruned("0.5"), still(), "name=again")
    assert again.summary["pruned"] == said and toy.trained() == set(), "and what was cut out is kept"


@pytest.mark.slow
def test_a_student_from_which_nearly_nothing_went_is_its_teacher(toy):
    """The last channel of one layer whose outputs nobody reads much: but for the statistics of batch norm the answers are the teacher's."""
    teacher = CNN.replace("width: 8", "width: 8, norm: none")
    run = toy.run(DIGITS, teacher, pruned("{share: 0.06, keep: [convs.0, convs.1]}"), still())
    assert abs(run.summary["pruned"]["value"] - run.summary["teacher"]["value"]) < 0.03
    assert 0.9 < run.summary["parameters_ratio"] < 1


@pytest.mark.slow
def test_a_run_that_was_stopped_is_taken_up_with_the_same_student(toy):
    """Prevents: a recipe that was written down names two models, or another cut is made."""
    asked = [0]

    def stop():
        asked[0] += 1
        return asked[0] > 12

    words = (DIGITS, CNN, pruned("{share: 0.5, importance: taylor, iterations: 2}"), still(8))
    with pytest.raises(Interrupted):
        toy.run(*words, cancel=stop)
    stopped = toy.run(*words)
    whole = toy.run(*words, runs=toy.runs.parent / "whole")
    assert stopped.summary == whole.summary
    assert recipe.load(stopped.path / "recipe.yaml").student.model["arch"] == "pruned"


@pytest.mark.slow
def test_a_residual_net_loses_blocks(toy):
    teacher = CNN.replace("{arch: cnn, width: 8}", "{arch: resnet, depth: 14}").replace("epochs: 4", "epochs: 1")
    run = toy.run(DIGITS, teacher, pruned("{depth: 8}"), still(), "gates={}")
    config = run.student.config["model"]
    assert config["base"]["depth"] == 8 and config["sizes"] == {} and run.summary["parameters_ratio"] < 0.5
    both = toy.run(DIGITS, teacher, pruned("{depth: 8, parameters: 0.75}"), still(), "name=both")
    assert both.summary["parameters_ratio"] < 0.25 < run.summary["parameters_ratio"]


@pytest.mark.slow
def test_a_check_without_a_run_knows_the_student(toy):
    checks, plan = pipeline.check_only(toy.recipe(DIGITS, CNN, pruned("0.5")), options=pipeline.Options(runs=toy.runs))
    assert checks and plan


@pytest.mark.parametrize(("target", "share"), [("parameters", 0.5), ("parameters", 0.9), ("macs", 0.5), ("macs", 0.9)])
def test_a_target_is_a_share_of_the_whole_teacher(toy, target, share):
    tree, data = settled(toy, DIGITS, CNN.replace("width: 8", "width: 32"), pruned(f"{{{target}: {share}}}"))
    made, whole = (make_model(spec, data, Given(), 0) for spec in (tree["student"]["model"], tree["teacher"][0]["model"]))
    count = parameters if target == "parameters" else lambda module: multiply_accumulates(module, data.example())
    assert share <= 1 - count(made) / count(whole) < share + 0.05


def test_the_recipe_that_is_written_down_is_the_same_recipe(toy):
    tree, data = settled(toy, pruned("0.5"))
    assert tree["student"]["model"]["base"] == tree["teacher"][0]["model"] and tree["student"]["from_teacher"]["prune"]["share"] == 0.5
    again = recipe.load(tree)
    assert recipe.resolved(again)["student"] == tree["student"]
    before = json.dumps(tree)
    derive.settle_student(tree, data)
    assert json.dumps(tree) == before, "settled once"


def test_the_same_student_every_time(toy):
    tree, data = settled(toy, pruned("{share: 0.4, importance: taylor}"))
    teacher = make_model(tree["teacher"][0]["model"], data, Given(), 7).eval()
    which = prune.calibration("taylor", data)
    made = [prune._started(tree, data, teacher, which).state_dict() for _ in range(2)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert made[0]["layers.0.weight"].shape == (10, 4), "of 16 units 6 went"
    rows = {tuple(row.tolist()) for row in teacher.layers[0].weight}
    assert all(tuple(row.tolist()) in rows for row in made[0]["layers.0.weight"]), "and what is left is the teacher's"


RESNET = "teacher.model={arch: resnet, depth: 14}"


@pytest.mark.parametrize(("overrides", "said"), [
    ((pruned("0"),), "greater than 0"), ((pruned("1.0"),), "less than 1"), ((pruned("-0.5"),), "greater than 0"),
    ((pruned("true"),), "prune is not usable"), ((pruned("half"),), "prune is not usable"),
    ((pruned("{share: .nan}"),), "finite number"),
    ((pruned("{share: 0.5, importance: tailor}"),), "'magnitude', 'taylor' or 'activation'"),
    ((pruned("{shares: 0.5}"),), 'Did you mean "share"'), ((pruned("{}"),), "needs one target: got none"),
    ((pruned("{share: 0.5, macs: 0.5}"),), "needs one target: got share and macs"),
    ((pruned("{share: 0.5, iterations: 0}"),), "iterations"),
    (("student={from_teacher: {prune: 0.5, layers: 1}}",), "says two things"), (("student={from_teacher: {}}",), "says two things"),
    (("student={from_teacher: {prune: 0.5, width: 8}}",), "says two things"),
    (("student={from_teacher: {prune: 0.5, importance: activation}}",), "or name it in prune"),
    (("student={from_teacher: {prune: 0.5}, model: {arch: linear}}",), "two models"),
    ((pruned("0.01"),), "removes nothing: got a share of 0.01 of at most 16 channels"),
    ((pruned("{parameters: 0.999}"),), "prune.parameters can't be reached: got 0.999, expected at most"),
    ((pruned("{share: 0.5, keep: [layers.9]}"),), "names no layer.*layers.0, head"),
    ((pruned("{share: 0.5, depth: 8}"),), "leaves no block out: got 8 of a mlp"),
    ((pruned("0.5"), "teacher.model={arch: linear}"), "can't prune this teacher.*arch linear.*a model of its own"),
    ((pruned("0.5"), "teacher={kind: predictor, estimator: GaussianNB, rights: {terms: own}}"), "can't prune this teacher"),
])  # fmt: skip
def test_bad_input_is_refused_before_anything_is_trained(toy, overrides, said):
    with pytest.raises(RecipeError, match=said):
        toy.run(*overrides)
    assert not list(toy.runs.glob("_cache/teacher*"))


@pytest.mark.parametrize(("teacher", "wanted", "said"), [
    (RESNET, "{depth: 20}", "leaves no block out: got 20 of a resnet of depth 14"), (RESNET, "{depth: 9}", "depth must be 6n"),
    ("teacher.model={arch: shufflenetv2}", "0.5", "can't prune this teacher.*arch shufflenetv2"),
    (RESNET, "{parameters: 0.99}", "can't be reached")])  # fmt: skip
def test_pictures_too(toy, teacher, wanted, said):
    with pytest.raises(RecipeError, match=said):
        settled(toy, DIGITS, teacher, pruned(wanted))


def test_text_models_have_fields_of_their_own(toy, folders, tmp_path):
    pytest.importorskip("tokenizers")
    table = tmp_path / "texts.csv"
    table.write_text("text,label\n" + "".join(f"play music {at},{'a' if at % 2 else 'b'}\n" for at in range(60)))
    model = f"{{arch: pretrained, path: '{folders.encoder(tmp_path / 'encoder')}'}}"
    with pytest.raises(RecipeError, match="can't prune this teacher.*layers: 3}, with width, heads and inner"):
        settled(toy, f"data={{kind: text, path: '{table}', split: {{test: 0.3}}}}", f"teacher.model={model}", pruned("0.5"))


def test_without_the_library_one_command_is_named_before_anything_is_trained(toy, monkeypatch):
    from understudy.compress import prune as finding

    monkeypatch.setattr(finding.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match='pip install "torch-pruning'):
        toy.run(pruned("0.5"))
    assert not list(toy.runs.glob("_cache/teacher*"))


def test_a_student_folder_with_other_sizes_is_refused(toy):
    run = toy.run(pruned("0.5"), still())
    file = run.path / "student" / "config.json"
    config = json.loads(file.read_text())
    wrong = {"does not fit": {"layers.0": [9, 4]}, "no such layer": {"layers.9": [9, 4]}, "positive": {"layers.0": [-1, 4]}}
    for said, sizes in wrong.items():
        file.write_text(json.dumps({**config, "model": {**config["model"], "sizes": sizes}}))
        with pytest.raises(DataError, match=said):
            artefact.load(run.path / "student")
