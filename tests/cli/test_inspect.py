"""`understudy inspect`: every layer with its shape, and what `layers: auto` would take."""

from __future__ import annotations

import json

import pytest

from understudy import pipeline, recipe
from understudy.records import Shapes
from understudy.stages.layers import settle_layers
from understudy.stages.prepare import Given, prepare

CNN = "cnn:width=4"
HINT = ["student.model={arch: cnn, width: 4}", "teacher={kind: local, model: {arch: cnn, width: 8}, train: {}, rights: {terms: own}}",
        "objective=[{kind: features.Hint}, {kind: features.AttentionTransfer}, {kind: relations.DistanceAngle}]"]


def listed(done) -> list[dict]:
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_an_architecture_s_layers_in_their_order(understudy):
    (found,) = listed(understudy("inspect", CNN, "--shape", "3,16,16", "--classes", "7", "--json"))
    assert (found["of"], found["input"], found["classes"]) == ("architecture", [3, 16, 16], 7)
    layers = {row["path"]: row for row in found["layers"]}
    assert list(layers)[0] == "convs.0" and list(layers)[-1] == "head"
    assert layers["convs.0"] == {
        "path": "convs.0", "type": "Conv2d", "input": [3, 16, 16], "output": [4, 16, 16], "parameters": 4 * 3 * 9, "auto": []}
    assert layers["head"]["output"] == [7] and layers["head"]["auto"] == ["vectors:input"]
    leaves = [row for path, row in layers.items() if not any(other.startswith(f"{path}.") for other in layers)]
    assert sum(row["parameters"] for row in leaves) == found["parameters"]


def test_the_table_says_the_same(understudy):
    done = understudy("inspect", CNN, "--shape", "1,8,8")
    (found,) = listed(understudy("inspect", CNN, "--shape", "1,8,8", "--json"))
    assert done.out.splitlines()[0].startswith("architecture: ") and f"{found['parameters']:,} parameters" in done.out
    assert [line.split()[0] for line in done.out.splitlines()[2:] if line] == [row["path"] for row in found["layers"]]
    assert "Bx4x8x8" in done.out and done.err.splitlines()[-1].startswith("next: understudy check")


def test_options_may_hold_lists(understudy):
    (found,) = listed(understudy("inspect", "mlp:hidden=[6,5],dropout=0.1", "--shape", "4", "--json"))
    assert [row["output"] for row in found["layers"] if row["type"] == "Linear"] == [[6], [5], [10]]


def test_marks_are_what_the_run_would_take(understudy):
    """Prevents: the listing promises one layer, and `layers: auto` matches another."""
    student, teacher = listed(understudy("inspect", "digits", *HINT, "--json"))
    assert (student["of"], teacher["of"]) == ("student", "teacher")
    wanted = recipe.load("digits", HINT)
    tree = recipe.resolved(wanted)
    shapes = settle_layers(tree, prepare(wanted, Given()), Given())
    assert isinstance(shapes, Shapes)
    for entry, word in zip(tree["objective"], ("last", "maps", "vectors:input"), strict=True):
        for tap, theirs in entry["layers"].items():
            for found, one in ((student, tap), (teacher, theirs)):
                (row,) = [row for row in found["layers"] if row["path"] == one.removesuffix(":input")]
                assert word in row["auto"]
        assert sum(word in row["auto"] for row in student["layers"]) == len(entry["layers"])
    for tap, shape in shapes.student.items():
        (row,) = [row for row in student["layers"] if row["path"] == tap.removesuffix(":input")]
        assert row["input" if tap.endswith(":input") else "output"] == (list(shape))


def test_one_of_the_two_models(understudy):
    (found,) = listed(understudy("inspect", "digits", *HINT, "--model", "teacher", "--json"))
    assert found["of"] == "teacher" and found["layers"][0]["output"] == [8, 8, 8]


def test_a_teacher_that_only_answers_is_left_out_or_refused(understudy):
    (found,) = listed(understudy("inspect", "digits", "--json"))
    assert found["of"] == "student"
    refused = understudy("inspect", "digits", "--model", "teacher")
    assert refused.code == 2 and "3 teachers" in refused.err and "--model student" in refused.err


def test_a_student_folder(understudy, toy, tmp_path):
    run = pipeline.run(toy.recipe(), options=pipeline.Options(runs=tmp_path / "runs"))
    (found,) = listed(understudy("inspect", run.path / "student", "--json"))
    assert found["of"] == "student" and found["layers"] and found["parameters"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["resnt", "--shape", "3,32,32"], 'Did you mean "resnet"?'),
        (["no/such/place.yaml"], "no student folder"),
        ([CNN], "--shape"),
        ([CNN, "--shape", "3,x"], "whole numbers"),
        ([CNN, "--shape", "0,8,8"], "--shape"),
        ([CNN, "--shape", "3,99999,99999"], "at most"),
        ([CNN, "--shape", "1,8,8", "--classes", "1"], "--classes"),
        (["cnn:width", "--shape", "1,8,8"], "name=value"),
        (["cnn:wdth=4", "--shape", "1,8,8"], 'Did you mean "width"?'),
        (["resnet:dept=56"], 'Did you mean "depth"?'),
        ([""], "MODEL is empty"),
        (["resnet:depth=9", "--shape", "3,32,32"], "6n+2"),
        ([CNN, "--shape", "1,8,8", "--model", "student"], "--model has no use"),
        ([CNN, "training.epochs=1", "--shape", "1,8,8"], "overrides have no use"),
        (["digits", "--shape", "1,8,8"], "--shape has no use"),
        (["digits", "--classes", "3"], "--classes has no use"),
        (["digits", "--model", "tutor"], "student or teacher"),
    ],
)
def test_bad_input_is_exit_2_with_what_to_do(understudy, words, said):
    done = understudy("inspect", *words)
    assert done.code == 2 and said in done.err and "expected" in done.err and done.out == ""


def test_a_folder_that_is_no_student_is_exit_3(understudy, tmp_path):
    done = understudy("inspect", tmp_path)
    assert done.code == 3 and "expected" in done.err and done.out == ""


def test_a_run_is_its_recipe_and_a_derived_student_is_listed(understudy, toy):
    """Prevents: a crash where the student is cut out of its teacher, and a run that "holds no weights"."""
    run = toy.run("training.seeds=1").path
    (found,) = listed(understudy("inspect", run, "--model", "student", "--json"))
    assert found["of"] == "student" and found["layers"][-1]["path"] == "head"
    pruned = listed(understudy("inspect", "pruned_digits", "--model", "student", "--json"))[0]
    assert pruned["parameters"] > 0
    done = understudy("inspect", "digits")
    assert done.code == 0 and "the teacher is not listed" in done.err


def test_an_exported_file_is_described_unless_it_is_another(understudy, toy, tmp_path):
    """Prevents: a sheet of a healthy model over a file with a flipped byte."""
    pytest.importorskip("onnxscript", reason="needs the extra export")
    folder = toy.run("training.seeds=1", "export=[onnx]").path / "exports/onnx"
    for name in (folder, folder / "model.onnx"):
        said = json.loads(understudy("inspect", name, "--json").out)
        assert said["classes"][0] == "setosa" and said["outputs"]
    for words in (("--classes", "7"), ("training.lr=1",), ("--model", "teacher"), ("--shape", "4")):
        done = understudy("inspect", folder, *words)
        assert done.code == 2 and "means nothing beside an exported file" in done.err
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)
    done = understudy("inspect", folder)
    assert done.code == 3, done
    done = understudy("inspect", tmp_path / "nowhere.onnx")
    assert done.code == 3 and "there is no such file" in done.err


def test_the_second_file_of_a_model_is_looked_at_too(understudy, toy, tmp_path):
    """Prevents: other weights under a graph whose own file is as it was."""
    pytest.importorskip("openvino", reason="needs the extra export")
    folder = toy.run("training.seeds=1", "export=[openvino]").path / "exports/openvino"
    assert understudy("inspect", folder).code == 0
    data = bytearray((folder / "model.bin").read_bytes())
    data[-1] ^= 1
    (folder / "model.bin").write_bytes(data)
    done = understudy("inspect", folder / "model.xml")
    assert done.code == 3 and "can't be believed" in done.err
    done = understudy("bench", folder, "--repeats", "2", "--starts", "1")
    assert done.code == 3 and "it is not the file that was checked" in done.out
