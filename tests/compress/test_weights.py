"""compress/weights.py: integers that become float before they are used."""

from __future__ import annotations

import numpy as np
import onnx

from understudy.compress.sensitivity import run
from understudy.compress.weights import weight_only

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
