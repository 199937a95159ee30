from __future__ import annotations

import numpy as np
import onnx
import pytest

from understudy.compress import quantize
from understudy.compress.graph import prepared
from understudy.compress.quantize import calibrated, dynamic, static
from understudy.compress.sensitivity import run
from understudy.compress.weights import weight_only
from understudy.errors import DataError, RecipeError

PIXELS = np.random.default_rng(0).integers(0, 256, (96, 3, 8, 8), dtype=np.uint8)


def operators(data):
    return [node.op_type for node in onnx.load_from_string(data).graph.node]


def weight_of(data, part):
    """The integers of the constant whose name holds `part`."""
    found = [one for one in onnx.load_from_string(data).graph.initializer if part in one.name and one.name.endswith("quantized")]
    return onnx.numpy_helper.to_array(found[0])


def test_a_layer_is_rounded_as_by_hand(make_chain):
    """x in [-1, 1] has the scale 2/255; each row of weights its largest magnitude / 127; their product is summed in whole numbers."""
    weight = np.array([[1.0, -0.3], [0.02, 0.0093]])
    rows = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    rows[0], rows[1] = 1.0, -1.0
    found = run(static(make_chain(weight), rows, signed=False), rows)
    step = 2 / 255
    zero = np.rint(1 / step)
    inputs = (np.clip(np.rint(rows / step) + zero, 0, 255) - zero) * step
    scales = np.abs(weight).max(axis=1, keepdims=True) / 127
    weights = np.rint(weight / scales) * scales
    np.testing.assert_allclose(found, inputs @ weights.T, atol=1e-5)
    assert not np.allclose(found, rows @ weight.T, atol=1e-4), "else nothing was rounded"


def test_every_row_of_weights_has_a_scale_of_its_own(make_chain):
    """Prevents: a row a thousand times smaller becomes zero."""
    weight = np.array([[1000.0, -500.0], [1.0, 0.5]])
    rows = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    for levels in (quantize.FULL, quantize.REDUCED):
        data = calibrated(make_chain(weight), rows, levels=levels).quantised()
        assert np.abs(weight_of(data, "layers.0.weight")).max(axis=1).tolist() == [levels, levels]


def test_weights_that_are_whole_multiples_survive(make_chain):
    """The scale is found from the largest weight: a matrix of multiples of 1/127 has no error of its own."""
    random = np.random.default_rng(1)
    weight = random.integers(-126, 127, (4, 6)) / 127.0
    weight[:, 0] = 1.0
    rows = random.uniform(-1, 1, (64, 6)).astype(np.float32)
    for data in (static(make_chain(weight), rows, signed=False), static(make_chain(weight), rows, signed=True)):
        assert np.array_equal(weight_of(data, "layers.0.weight"), np.rint(weight * 127))


def test_a_cpu_that_saturates_gets_seven_bits(make_chain, monkeypatch):
    """Prevents: products of 8 bits, two at a time, overflow 16, and the answers are others than on the machine that made the file."""
    rows = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    for exact, levels in ((True, 127), (False, 64)):
        monkeypatch.setattr(quantize, "cpu", lambda exact=exact: (False, exact))
        assert quantize.levels_here() == calibrated(make_chain(np.eye(2)), rows).levels == levels


@pytest.mark.parametrize("ranges", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("signed", [True, False])
def test_a_network_of_convolutions_keeps_its_answers(make_net, ranges, signed):
    data = make_net()
    reference = run(data, PIXELS)
    found = run(static(data, PIXELS, ranges=ranges, signed=signed), PIXELS)
    assert np.abs(found - reference).max() < 0.05 * np.abs(reference).max()
    assert not np.array_equal(found, reference)


def test_integers_go_from_one_convolution_to_the_next_and_answers_stay_float(make_net):
    """The runtime has integer kernels where what goes in and out is quantised; a rounded logit would lose close decisions."""
    made = onnx.load_from_string(static(make_net(), PIXELS))
    makers = {name: node for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert [makers[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
    assert makers["logits"].op_type == "Gemm"
    assert all(makers[name].op_type == "DequantizeLinear" for name in next(node for node in made.graph.node if node.name == "sum").input)
    assert "Relu" not in [node.op_type for node in made.graph.node], "cut off by the range of what follows"


def test_pixels_are_scaled_in_float(make_net):
    """The shift of the preprocessing is no residual connection: rounding it would round the input twice."""
    made = onnx.load_from_string(static(make_net(), PIXELS))
    makers = {name: node for node in made.graph.node for name in node.output}
    shifted = next(node for node in made.graph.node if node.name == "shifted")
    assert "DequantizeLinear" not in [makers[name].op_type for name in shifted.input if name in makers]


def test_the_file_is_smaller_and_the_same_again_and_keeps_its_metadata(make_chain):
    random = np.random.default_rng(0)
    rows = random.normal(size=(64, 64)).astype(np.float32)
    data = make_chain(random.normal(size=(256, 64)), random.normal(size=(10, 256)), metadata={"labels": "a,b"})
    for make, share in [(lambda: static(data, rows), 0.35), (lambda: dynamic(data), 0.35), (lambda: weight_only(data), 0.4),
                        (lambda: weight_only(data, 4), 0.25)]:
        found = make()
        assert len(found) < share * len(data) and found == make()
        assert [(one.key, one.value) for one in onnx.load_from_string(found).metadata_props] == [("labels", "a,b")]


@pytest.mark.parametrize("make", [dynamic, weight_only])
def test_other_precisions_keep_the_answers(make_chain, make):
    random = np.random.default_rng(0)
    data = make_chain(random.normal(size=(32, 64)) / 8, random.normal(size=(10, 32)))
    rows = random.normal(size=(40, 64)).astype(np.float32)
    reference, found = run(data, rows), run(make(data), rows)
    assert found.dtype == np.float32 and 0 < np.abs(found - reference).max() < 0.02 * np.abs(reference).max()


@pytest.mark.parametrize("kept", [(), ("head",)])
def test_rows_of_a_table_are_rounded_as_by_hand(make_table, kept):
    """One scale a row: a slow twin rounds them before; a row a thousand times smaller than the others does not become zero."""
    random = np.random.default_rng(0)
    table, weight = random.normal(size=(60, 32)).astype(np.float32), random.normal(size=(3, 32))
    table[7] *= 1e-3
    table[0] = 0.0
    rows = random.integers(0, 60, (64, 5))
    scales = np.abs(table).max(1, keepdims=True) / 127
    twin = np.rint(table / np.where(scales > 0, scales, 1)) * scales
    alone = calibrated(make_table(table, weight), rows).quantised(keep_float=("head",))
    np.testing.assert_allclose(run(alone, rows), run(make_table(twin, weight), rows), atol=1e-5)
    assert not np.allclose(run(alone, rows), run(make_table(table, weight), rows), atol=1e-4), "else nothing was rounded"
    found = run(dynamic(make_table(table, weight), keep_float=kept), rows)
    np.testing.assert_allclose(found, run(dynamic(make_table(twin, weight), keep_float=(*kept, "embedding")), rows), atol=1e-5)


def test_a_table_is_a_layer_among_others(make_table):
    """It is in the table of what hurts, stays float where it is asked to, and is left alone where it is small or serves something else."""
    random = np.random.default_rng(0)
    rows = random.integers(0, 32, (64, 5))
    data = make_table(random.normal(size=(32, 32)), random.normal(size=(3, 32)))
    ready = calibrated(data, rows)
    assert [(node.layer, node.op, node.weights) for node in ready.nodes] == [("embedding", "Gather", 1024), ("head", "Gemm", 96)]
    for make in (ready.quantised, lambda **options: dynamic(data, **options)):
        kinds = {name: {one.name: one.data_type for one in onnx.load_from_string(make(keep_float=kept)).graph.initializer}
                 for name, kept in (("none", ()), ("table", ("embedding",)))}
        assert kinds["none"]["student.embedding.weight"] == onnx.TensorProto.INT8
        assert kinds["table"]["student.embedding.weight"] == onnx.TensorProto.FLOAT
    assert "student.embedding.weight_scale" not in str(onnx.load_from_string(ready.quantised(only="product")).graph.initializer)
    small = make_table(random.normal(size=(31, 32)), random.normal(size=(3, 32)))
    assert [node.layer for node in calibrated(small, rows % 31).nodes] == ["head"]
    tied = onnx.load_from_string(data)
    tied.graph.node[-1].input[1] = "student.embedding.weight"
    assert [node.layer for node in calibrated(tied.SerializeToString(), rows).nodes] == ["embedding"], "the product's weight alone"


def test_dynamic_is_not_for_convolutions(make_net):
    with pytest.raises(RecipeError, match="2 convolutions.*2 to 3 times slower.*static"):
        dynamic(make_net())


def test_a_layer_that_is_kept_stays_as_it_is_in_dynamic_files_too(make_chain):
    """Prevents: the quantiser renames a Gemm before it asks what to leave alone, and the report says that it is in float."""
    random = np.random.default_rng(0)
    data = make_chain(random.normal(size=(6, 4)), random.normal(size=(3, 6)))
    for kept in (("layers.0",), ("gemm_0",)):
        made = onnx.load_from_string(dynamic(data, keep_float=kept))
        floats = {one.name for one in made.graph.initializer if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 2}
        assert any("layers.0" in name for name in floats) and not any("layers.1" in name for name in floats)
    with pytest.raises(RecipeError, match='"?third"?.*layers.0'):
        dynamic(data, keep_float=("third",))


def test_a_layer_that_is_kept_stays_as_it_is(make_net):
    """By the name of its layer or of its node."""
    data = make_net()
    for name in ("second", "conv_2"):
        made = onnx.load_from_string(static(data, PIXELS, keep_float=(name,)))
        assert "student.second.weight" in [one.name for one in made.graph.initializer]
        assert "student.first.weight" not in [one.name for one in made.graph.initializer]
    with pytest.raises(RecipeError, match='"third".*first, head, second, sum'):
        static(data, PIXELS, keep_float=("third",))
    with pytest.raises(RecipeError, match="nothing is left"):
        static(data, PIXELS, keep_float=("first", "second", "head", "sum"))


def test_ranges_that_were_learned_take_the_place_of_the_calibrated(make_chain):
    weight = np.array([[1.0, 1.0]])
    rows = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    ready = calibrated(make_chain(weight), rows, signed=False, learned={"layers.0": (0.0, 0.5)})
    assert ready.ranges["input"] == (0.0, 0.5)
    np.testing.assert_allclose(run(ready.quantised(), np.array([[-1, 0.2], [3, 3]], np.float32)), [[0.2], [1.0]], atol=1e-6)


def test_the_median_row_is_not_spoilt_by_one_that_is_far_out(make_chain):
    """What "percentile" is for: the step of "minmax" is a thousand times too large for all other rows."""
    rows = np.random.default_rng(0).uniform(-1, 1, (20_000, 8)).astype(np.float32)
    rows[7, 3] = 1000.0
    data = make_chain(np.eye(8))
    errors = {name: np.median(np.abs(run(static(data, rows, ranges=name), rows) - rows)) for name in ("minmax", "percentile")}
    assert errors["percentile"] < errors["minmax"] / 50


def test_too_few_rows_are_refused(make_net):
    with pytest.raises(DataError, match="63 rows, expected at least 64 rows of the training split"):
        static(make_net(), PIXELS[:63])
    assert static(make_net(), PIXELS[:64])


def test_rows_without_an_answer_are_refused(make_chain):
    rows = np.zeros((64, 2), np.float32)
    rows[3] = np.nan
    with pytest.raises(DataError, match="numbers that are not finite"):
        static(make_chain(np.eye(2)), rows)


@pytest.mark.parametrize("data", [b"", b"no model at all"])
def test_bytes_that_are_no_model_are_refused(data):
    for make in (lambda: static(data, PIXELS), lambda: dynamic(data), lambda: weight_only(data)):
        with pytest.raises(DataError):
            make()


def test_batch_norms_are_folded(make_net):
    """A batch norm between would be computed in float, and the integers end before it."""
    model = onnx.load_from_string(make_net())
    random = np.random.default_rng(0)
    for name in ("gamma", "beta", "mean"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(random.normal(1, 0.2, 8).astype(np.float32), name))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full(8, 2.0, np.float32), "variance"))
    place = [node.name for node in model.graph.node].index("relu_1")
    norm = onnx.helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "variance"], ["b1"], name="norm")
    model.graph.node.insert(place, norm)
    model.graph.node[place + 1].input[0] = "b1"
    data = model.SerializeToString()
    assert "BatchNormalization" not in operators(prepared(data))
    np.testing.assert_allclose(run(prepared(data), PIXELS), run(data, PIXELS), rtol=1e-4, atol=1e-4)


def test_nothing_is_printed_or_left_in_the_working_folder(make_net, make_table, capfd, tmp_path, monkeypatch):
    """Prevents: a tool that gives up on a graph leaves the weights in whatever folder the user stands in."""
    monkeypatch.chdir(tmp_path)
    static(make_net(), PIXELS, ranges="entropy")
    dynamic(make_table(np.eye(40), np.eye(40)))
    assert capfd.readouterr() == ("", "") and not list(tmp_path.iterdir())
