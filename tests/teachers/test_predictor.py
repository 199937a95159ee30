from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from understudy import kinds
from understudy.errors import DataError, RecipeError
from understudy.preprocess import Preprocess
from understudy.records import Batch
from understudy.teachers.predictor import ESTIMATORS, SMALLEST, Options, Teacher, fingerprint, fit, from_onnx, in_order, is_probability

random = np.random.default_rng(0)
INPUTS = random.normal(size=(90, 4)).astype(np.float32)
LABELS = (INPUTS[:, 0] > 0).astype(np.int64) + (INPUTS[:, 1] > 1)
FAST = {"RandomForestClassifier": {"n_estimators": 5}, "ExtraTreesClassifier": {"n_estimators": 5},
        "GradientBoostingClassifier": {"n_estimators": 3}, "HistGradientBoostingClassifier": {"max_iter": 3},
        "MLPClassifier": {"solver": "lbfgs", "max_iter": 1000, "alpha": 1.0, "hidden_layer_sizes": [3]}}


def batch(inputs=INPUTS):
    return Batch(ids=torch.arange(len(inputs)), view=0, inputs=torch.from_numpy(inputs), labels=torch.zeros(len(inputs), dtype=torch.int64))


def trained(name, classes=3, labels=LABELS, data="d", **options):
    return fit(Options(estimator=name, options=FAST.get(name, {}), **options), INPUTS, labels, classes, data)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_that_may_be_named_teaches_its_own_probabilities(name):
    teacher = trained(name)
    found = teacher.teach(batch()).log_probs().exp().numpy()
    assert np.isfinite(found).all() and found.shape == (90, 3)
    assert (found.argmax(1) == LABELS).mean() > 0.8
    expected = np.clip(teacher.predict(INPUTS), teacher.clip, 1)
    np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), atol=1e-6)


def test_a_class_without_a_training_row_gets_its_own_empty_column():
    """`predict_proba` has no column for it: classes after it would silently move one place to the left."""
    labels = np.where(LABELS == 1, 3, LABELS)
    found = trained("LogisticRegression", classes=5, labels=labels).teach(batch()).logits
    assert found.shape == (90, 5)
    assert np.mean(found.argmax(1).numpy() == labels) > 0.85
    assert bool((found[:, [1, 4]] == np.float32(np.log(SMALLEST))).all())


def test_unlabelled_rows_are_left_out():
    labels = LABELS.copy()
    labels[::2] = -1
    rows = labels >= 0
    some = fit(Options(estimator="GaussianNB"), INPUTS[rows], labels[rows], 3, "d")
    assert torch.equal(trained("GaussianNB", labels=labels).teach(batch()).logits, some.teach(batch()).logits)


def test_zeros_of_a_forest_are_raised_to_a_share_of_one_more_vote():
    teacher = trained("RandomForestClassifier")
    assert teacher.clip == pytest.approx(1 / (3 * 6))
    assert (teacher.predict(INPUTS) == 0).any(), "the case must occur, else this test sees nothing"
    assert float(teacher.teach(batch()).logits.min()) == pytest.approx(np.log(1 / 18))
    assert trained("RandomForestClassifier", clip=1e-4).clip == 1e-4
    assert trained("LogisticRegression").clip == SMALLEST


def test_pictures_become_rows():
    pictures = INPUTS.reshape(90, 1, 2, 2)
    teacher = fit(Options(estimator="GaussianNB"), pictures, LABELS, 3, "d")
    assert torch.equal(teacher.teach(batch(pictures)).logits, trained("GaussianNB").teach(batch()).logits)


def test_the_same_training_is_the_same_teacher_and_anything_else_another():
    """A fingerprint that forgets an option makes the store of another teacher pass for this one's."""
    base = trained("RandomForestClassifier")
    again = trained("RandomForestClassifier")
    assert base.fingerprint == again.fingerprint and torch.equal(base.teach(batch()).logits, again.teach(batch()).logits)
    others = [trained("RandomForestClassifier", seed=1), trained("RandomForestClassifier", data="e"), trained("ExtraTreesClassifier"),
              trained("RandomForestClassifier", clip=1e-3), trained("RandomForestClassifier", classes=4),
              fit(Options(estimator="RandomForestClassifier", options={"n_estimators": 6}), INPUTS, LABELS, 3, "d")]
    assert len({teacher.fingerprint for teacher in [base, *others]}) == len(others) + 1


@pytest.mark.parametrize("options", [
    {}, {"estimator": "GaussianNB", "onnx": "x.onnx"}, {"estimator": "os.system"}, {"estimator": "SVC"},
    {"estimator": "StackingClassifier"},
    {"estimator": "GaussianNB", "options": {"n_estimators": 3}}, {"onnx": "x.onnx", "options": {"a": 1}}, {"onnx": "x", "output": "odds"},
    {"estimator": "GaussianNB", "output": "logits"}, {"estimator": "GaussianNB", "takes": "encoded"}, {"onnx": "x", "clip": 0.0},
    {"onnx": "x", "clip": 0.5}])
def test_unusable_options_are_refused(options):
    with pytest.raises(RecipeError):
        kinds.configure("teachers", "predictor", options)


def test_a_value_that_the_estimator_refuses_is_a_recipe_error():
    with pytest.raises(RecipeError, match="n_estimators"):
        fit(Options(estimator="RandomForestClassifier", options={"n_estimators": -1}), INPUTS, LABELS, 3, "d")


@pytest.mark.parametrize("answer", [lambda x: x[:, :3] * 3, lambda x: np.full((len(x), 3), 0.5), lambda x: np.eye(3)[:2],
                                    lambda x: np.full(len(x), 1.0)])
def test_answers_that_are_no_probabilities_are_refused(answer):
    """The logarithm of logits, clipped at both ends, would be finite and mean nothing."""
    with pytest.raises(DataError):
        Teacher(answer, "f").teach(batch())


def test_nan_is_passed_on_for_the_self_test_to_name():
    logits = Teacher(lambda x: np.where(np.arange(len(x))[:, None] == 2, np.nan, 0.5) * np.ones((1, 2)), "f").teach(batch()).logits
    assert bool(torch.isnan(logits[2]).all()) and bool(torch.isfinite(logits[[0, 1, 3]]).all())


def test_what_is_called_logits_is_passed_on_as_it_is():
    """Probabilities given as logits are a fault that the self-test names; a repair here would hide it."""
    probabilities = np.full((90, 3), 1 / 3)
    found = Teacher(lambda x: probabilities[:len(x)], "f", output="logits").teach(batch()).logits
    np.testing.assert_allclose(found, probabilities, rtol=1e-6)


def test_columns_follow_the_data_set_s_order():
    answers = np.array([[0.7, 0.2, 0.1]])
    by_name = in_order(lambda x: answers, ["cat", "ant", "bee"], 4, names=("ant", "bee", "cat", "dog"))
    assert by_name(INPUTS[:1]).tolist() == [[0.2, 0.1, 0.7, 0.0]]
    by_number = in_order(lambda x: answers, np.array([3.0, 0.0, 1.0]), 4)
    assert by_number(INPUTS[:1]).tolist() == [[0.2, 0.1, 0.0, 0.7]]
    for known in (["eel", "ant", "bee"], [4, 0, 1], [-1, 0, 1]):
        with pytest.raises(DataError):
            in_order(lambda x: answers, known, 4, names=("ant", "bee", "cat", "dog"))


def test_an_object_is_known_by_its_answers():
    first = fingerprint(lambda x: np.tile([0.25, 0.75], (len(x), 1)), INPUTS)
    assert first == fingerprint(lambda x: np.tile([0.25 + 1e-9, 0.75], (len(x), 1)), INPUTS)
    assert first != fingerprint(lambda x: np.tile([0.26, 0.74], (len(x), 1)), INPUTS)


WEIGHT = random.normal(size=(4, 3)).astype(np.float32)
VECTOR = Preprocess.fit("vector", INPUTS)


def graph(path, *, softmax=False, label=False, batch_size="n", dtype=TensorProto.FLOAT, shape=(4,)):
    """A linear model of four inputs and three classes as an ONNX file."""
    nodes, last = [], "x"
    if dtype != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [last], ["f"], to=TensorProto.FLOAT))
        last = "f"
    if len(shape) > 1:
        nodes.append(helper.make_node("Flatten", [last], ["flat"]))
        last = "flat"
    nodes.append(helper.make_node("MatMul", [last, "w"], ["z"]))
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [batch_size, 3])]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["z"], ["p"], axis=1))
        outputs = [helper.make_tensor_value_info("p", TensorProto.FLOAT, [batch_size, 3])] + (outputs if softmax == "both" else [])
    if label:
        nodes.append(helper.make_node("ArgMax", ["z"], ["label"], axis=1, keepdims=0))
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, [batch_size]))
    made = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", dtype, [batch_size, *shape])], outputs,
                             [numpy_helper.from_array(WEIGHT, "w")])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return str(path)


def taught(path, inputs=INPUTS, preprocess=VECTOR, **options):
    return from_onnx(Options(onnx=path, **options), inputs[:32], preprocess).teach(batch(inputs))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("label", [False, True])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_logits_and_probabilities_of_an_onnx_file_are_told_apart(tmp_path, softmax, label, dtype):
    found = taught(graph(tmp_path / "m.onnx", softmax=softmax, label=label, dtype=dtype)).log_probs()
    expected = torch.log_softmax(torch.from_numpy(INPUTS @ WEIGHT), dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_stated_output_is_believed(tmp_path):
    path = graph(tmp_path / "m.onnx", softmax=True)
    assert is_probability(taught(path, output="logits").logits.double().numpy()).all()
    with pytest.raises(DataError, match="no probabilities"):
        taught(graph(tmp_path / "z.onnx"), output="probabilities")


def test_several_outputs_need_a_name(tmp_path):
    path = graph(tmp_path / "m.onnx", softmax="both")
    with pytest.raises(DataError, match="output_name"):
        taught(path)
    with pytest.raises(DataError, match="output_name"):
        taught(path, output_name="nowhere")
    torch.testing.assert_close(taught(path, output_name="z").logits, torch.from_numpy(INPUTS @ WEIGHT), rtol=1e-4, atol=1e-4)


def test_a_graph_that_takes_pixels_gets_pixels(tmp_path):
    """Our own export has scale and shift inside: standardised inputs would be standardised twice."""
    raw = random.integers(0, 256, (90, 2, 2), dtype=np.uint8)
    preprocess = Preprocess.fit("image", raw)
    path = graph(tmp_path / "m.onnx", dtype=TensorProto.UINT8, shape=(1, 2, 2))
    found = taught(path, preprocess.normalise(preprocess.encode(raw)), preprocess).logits.numpy()
    np.testing.assert_allclose(found, raw.reshape(90, 4).astype(np.float32) @ WEIGHT, rtol=1e-4, atol=1e-2)


def test_an_encoded_input_can_be_asked_for(tmp_path):
    path, encoded = graph(tmp_path / "m.onnx"), VECTOR.encode(INPUTS)
    found = taught(path, VECTOR.normalise(encoded), takes="encoded").logits.numpy()
    np.testing.assert_allclose(found, encoded @ WEIGHT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "fixed batch", "other shape", "second file"])
def test_an_onnx_file_that_can_not_teach_is_refused(tmp_path, damage):
    path = graph(tmp_path / "m.onnx", batch_size=1 if damage == "fixed batch" else "n")
    data = (tmp_path / "m.onnx").read_bytes()
    if damage == "missing":
        path = str(tmp_path / "nowhere.onnx")
    elif damage == "second file":
        onnx.save(onnx.load(path), path, save_as_external_data=True, location="weights", size_threshold=0)
    elif damage in ("text", "truncated"):
        (tmp_path / "m.onnx").write_bytes(b"not a model" if damage == "text" else data[:len(data) // 2])
    with pytest.raises(DataError, match=r"nowhere\.onnx|m\.onnx") as error:
        taught(path, INPUTS[:, :2] if damage == "other shape" else INPUTS)
    assert error.value.exit_code == 3


def test_the_file_s_bytes_are_its_fingerprint(tmp_path):
    first, same, other = graph(tmp_path / "a.onnx"), graph(tmp_path / "b.onnx"), graph(tmp_path / "c.onnx", softmax=True)
    found = [from_onnx(Options(onnx=path), INPUTS, VECTOR).fingerprint for path in (first, same, other)]
    assert found[0] == found[1] != found[2]
