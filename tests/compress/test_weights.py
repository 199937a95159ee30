"""compress/weights.py: integers that become float before they are used."""

from __future__ import annotations

import numpy as np
import onnx

from understudy.compress.sensitivity import run
from understudy.compress.weights import half, weight_only

PIXELS = np.random.default_rng(0).integers(0, 256, (96, 3, 8, 8), dtype=np.uint8)


def test_fewer_bits_cost_more(make_chain):
    random = np.random.default_rng(0)
    data = make_chain(random.normal(size=(32, 64)))
    rows = random.normal(size=(40, 64)).astype(np.float32)
    errors = [np.abs(run(weight_only(data, bits), rows) - run(data, rows)).mean() for bits in (8, 4)]
    assert 8 * errors[0] < errors[1] < 32 * errors[0], "16 times the step"


def test_kernels_are_integers_too(make_net):
    data = make_net()
    found = weight_only(data, 4)
    operators = [node.op_type for node in onnx.load_from_string(found).graph.node]
    assert operators.count("DequantizeLinear") == 2 and "MatMulNBits" in operators
    kernels = [one for one in onnx.load_from_string(found).graph.initializer if one.name == "student.first.weight"]
    assert kernels[0].data_type == onnx.TensorProto.INT8
    assert np.abs(run(found, PIXELS) - run(data, PIXELS)).max() < 0.1 * np.abs(run(data, PIXELS)).max()


def test_tables_are_integers_too(make_table, caplog):
    """In either number of bits; the tool that does so in 4 knows no 8, and said it in a log that nobody reads."""
    random = np.random.default_rng(0)
    data = make_table(random.normal(size=(200, 32)), random.normal(size=(32, 32)))
    rows = random.integers(0, 200, (40, 5))
    errors = []
    for bits, share in ((8, 0.35), (4, 0.22)):
        found = weight_only(data, bits)
        assert len(found) < share * len(data) + 2000 and not caplog.records
        errors.append(np.abs(run(found, rows) - run(data, rows)).mean() / np.abs(run(data, rows)).mean())
    assert errors[0] < 0.01 and 4 * errors[0] < errors[1] < 64 * errors[0]


def test_half_is_each_weight_rounded_to_sixteen_bits_and_nothing_else(make_chain):
    """A slow twin: the same file with weights that were rounded before; what float16 can't hold stays."""
    random = np.random.default_rng(0)
    layers = [random.normal(size=(32, 64)), random.normal(size=(10, 32))]
    layers[1][0, 0] = 1e5
    rows = random.normal(size=(40, 64)).astype(np.float32)
    data = make_chain(*layers)
    twin = make_chain(layers[0].astype(np.float16).astype(np.float32), layers[1])
    np.testing.assert_array_equal(run(half(data), rows), run(twin, rows))
    assert not np.array_equal(run(half(data), rows), run(data, rows)) and half(data) == half(data)
    whole = make_chain(random.normal(size=(256, 64)), random.normal(size=(10, 256)), metadata={"labels": "a,b"})
    assert len(half(whole)) < 0.55 * len(whole)
    assert [(one.key, one.value) for one in onnx.load_from_string(half(whole)).metadata_props] == [("labels", "a,b")]
    tiny = make_chain(np.eye(3))
    assert run(half(tiny), np.eye(3, dtype=np.float32)).tolist() == np.eye(3).tolist() and b"half" not in half(tiny)
