"""Nets that can be pruned, with batch norm that has seen data; and ONNX files to quantise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from understudy import kinds

OPTIONS = {
    "mlp": {"hidden": (9, 6)}, "cnn": {"width": 6}, "resnet": {"depth": 8}, "wrn": {"depth": 10, "width": 1},
    "vgg": {"depth": 8, "width": 4}, "mobilenetv2": {"width": 0.25, "expansion": 2},
}  # fmt: skip
SHAPE = (3, 16, 16)


@pytest.fixture(scope="session")
def net():
    """A module in float64 and eval mode, and the shape of its input."""

    def call(arch, shape=SHAPE, seed=0, **options):
        torch.manual_seed(seed)
        module = kinds.configure("models", arch, OPTIONS[arch] | options).build(shape, 5).double()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 2)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.1)
        return module.eval()

    return call


@pytest.fixture
def make_chain():
    """make(*weights, biases=None) -> bytes: Gemm after Gemm with a ReLU between, weights (outputs, inputs) named layers.<i>.weight."""
    def make(*weights, metadata=None):
        nodes, constants, last = [], [], "input"
        for index, weight in enumerate(weights):
            constants.append(numpy_helper.from_array(np.asarray(weight, np.float32), f"student.layers.{index}.weight"))
            out = "logits" if index == len(weights) - 1 else f"h{index}"
            nodes.append(helper.make_node("Gemm", [last, constants[-1].name], [out], name=f"gemm_{index}", transB=1))
            last = out
            if out != "logits":
                nodes.append(helper.make_node("Relu", [out], [f"r{index}"], name=f"relu_{index}"))
                last = f"r{index}"
        graph = helper.make_graph(
            nodes, "chain",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", np.shape(weights[0])[1]])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", np.shape(weights[-1])[0]])], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        helper.set_model_props(model, metadata or {})
        onnx.checker.check_model(model)
        return model.SerializeToString()

    return make


@pytest.fixture
def make_net():
    """make() -> bytes: convolution, ReLU, convolution beside a shortcut, sum, pooling, Gemm; uint8 pixels (N, 3, 8, 8) -> 4 logits."""
    def make():
        random = np.random.default_rng(3)
        constants = {
            "student.first.weight": random.normal(0, 0.3, (8, 3, 3, 3)), "student.second.weight": random.normal(0, 0.2, (8, 8, 3, 3)),
            "student.second.bias": random.normal(0, 0.5, 8), "student.head.weight": random.normal(0, 0.5, (4, 8)),
            "student.head.bias": random.normal(0, 0.5, 4), "scale": np.full((3, 1, 1), 1 / 64), "shift": np.full((3, 1, 1), -2.0)}
        nodes = [
            helper.make_node("Cast", ["input"], ["x0"], name="cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", ["x0", "scale"], ["x1"], name="scaled"),
            helper.make_node("Add", ["x1", "shift"], ["x"], name="shifted"),
            helper.make_node("Conv", ["x", "student.first.weight"], ["c1"], name="conv_1", pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c1"], ["r1"], name="relu_1"),
            helper.make_node("Conv", ["r1", "student.second.weight", "student.second.bias"], ["c2"], name="conv_2", pads=[1, 1, 1, 1]),
            helper.make_node("Add", ["c2", "r1"], ["s"], name="sum"), helper.make_node("GlobalAveragePool", ["s"], ["g"], name="pool"),
            helper.make_node("Flatten", ["g"], ["f"], name="flat"),
            helper.make_node("Gemm", ["f", "student.head.weight", "student.head.bias"], ["logits"], name="head", transB=1)]
        graph = helper.make_graph(
            nodes, "net", [helper.make_tensor_value_info("input", TensorProto.UINT8, ["batch", 3, 8, 8])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
            [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        helper.set_model_props(model, {"labels": "a,b,c,d", "onnx.quant.pre_process": "no"})
        return model.SerializeToString()

    return make


@pytest.fixture
def make_table():
    """make(table, weight) -> bytes: rows (V, D) of a table for (B, L) tokens, their mean, and a product with a weight (C, D)."""
    def make(table, weight):
        constants = [numpy_helper.from_array(np.asarray(table, np.float32), "student.embedding.weight"),
                     numpy_helper.from_array(np.asarray(weight, np.float32), "student.head.weight"),
                     numpy_helper.from_array(np.array([1]), "axes")]
        nodes = [helper.make_node("Gather", [constants[0].name, "input"], ["words"], name="look_up"),
                 helper.make_node("ReduceMean", ["words", "axes"], ["mean"], name="mean", keepdims=0),
                 helper.make_node("Gemm", ["mean", constants[1].name], ["logits"], name="product", transB=1)]
        graph = helper.make_graph(
            nodes, "table", [helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", "tokens"])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(weight)])], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        return model.SerializeToString()

    return make
