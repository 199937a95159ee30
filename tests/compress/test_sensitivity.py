from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto, helper

from understudy.compress import quantize
from understudy.compress.sensitivity import Limits, cost, mixed, run, sensitivity
from understudy.errors import DataError, RecipeError

RANDOM = np.random.default_rng(0)


@pytest.fixture
def fragile(make_chain):
    """(bytes, rows, reference): the second of three layers has rows whose entries differ a thousandfold, and answers hang on the small."""
    wide = np.eye(16)
    spoilt = np.zeros((16, 16))
    spoilt[:, 1:] = RANDOM.normal(0, 1, (16, 15))
    spoilt[:, 0] = 1000.0
    rows = (RANDOM.integers(0, 256, (200, 16)) / 255).astype(np.float32)
    rows[:, 0] = 1 / 255
    data = make_chain(wide, spoilt, np.eye(16)[:10])
    return data, rows, run(data, rows)


def test_cost_by_hand():
    reference = np.log([[0.5, 0.5], [0.75, 0.25]])
    found = np.log([[0.25, 0.75], [0.75, 0.25]])
    one = cost(reference, found)
    assert one.kl_nats == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)
    assert one.mse == pytest.approx((math.log(2) ** 2 + math.log(1.5) ** 2) / 4)
    assert one.agreement == 0.5
    same = cost(reference, reference)
    assert (same.kl_nats, same.mse, same.agreement) == (0, 0, 1) and same.cosine == pytest.approx(1)


def test_the_layer_that_hurts_comes_first(fragile):
    data, rows, reference = fragile
    table = sensitivity(quantize.calibrated(data, rows), rows, reference)
    assert [harm.node.layer for harm in table][0] == "layers.1" and len(table) == 3
    assert table[0].cost.kl_nats > 10 * table[1].cost.kl_nats
    assert [harm.cost.kl_nats for harm in table] == sorted((harm.cost.kl_nats for harm in table), reverse=True)


def test_each_row_of_the_table_is_that_node_alone(fragile):
    """A slow twin: the file with all other nodes kept in float."""
    data, rows, reference = fragile
    ready = quantize.calibrated(data, rows)
    for harm in sensitivity(ready, rows, reference):
        others = tuple(node.name for node in ready.nodes if node.name != harm.node.name)
        twin = cost(reference, run(ready.quantised(keep_float=others), rows))
        assert harm.cost.kl_nats == pytest.approx(twin.kl_nats, rel=1e-3, abs=1e-9)


def test_no_more_than_needed_stays_float_the_most_harmful_first(fragile):
    data, rows, reference = fragile
    ready, limits = quantize.calibrated(data, rows), Limits(agreement=0.95)
    found = mixed(ready, rows, reference, limits=limits)
    assert found.passed and found.cost.agreement >= 0.95
    assert found.kept == tuple(harm.node.layer for harm in found.table)[:len(found.kept)] and found.kept[0] == "layers.1"
    for fewer in range(len(found.kept)):
        assert not cost(reference, run(ready.quantised(keep_float=found.kept[:fewer]), rows)).within(limits)
    assert cost(reference, run(found.data, rows)) == found.cost
    assert "stay float" in found.reason


def test_nothing_stays_float_where_nothing_hurts(make_chain):
    data = make_chain(RANDOM.normal(size=(16, 8)), RANDOM.normal(size=(3, 16)))
    rows = RANDOM.normal(size=(300, 8)).astype(np.float32)
    found = mixed(quantize.calibrated(data, rows), rows, run(data, rows), limits=Limits(agreement=0.9))
    assert found.passed and found.kept == () and "every layer quantised" in found.reason


def test_it_says_where_nothing_helps(make_chain):
    """Answers that hang on the last bit: a reference that no file gives."""
    data = make_chain(RANDOM.normal(size=(16, 8)), RANDOM.normal(size=(3, 16)))
    rows = RANDOM.normal(size=(300, 8)).astype(np.float32)
    ready = quantize.calibrated(data, rows)
    found = mixed(ready, rows, -run(data, rows))
    assert not found.passed and found.kept == () and found.reason.startswith("nothing helps")
    assert found.data == ready.quantised()


def test_a_size_that_leaves_no_room_is_said(fragile):
    data, rows, reference = fragile
    ready = quantize.calibrated(data, rows)
    whole = len(ready.quantised())
    found = mixed(ready, rows, reference, limits=Limits(agreement=0.95, bytes=whole))
    assert not found.passed and str(whole) in found.reason and len(found.data) == whole
    assert mixed(ready, rows, reference, limits=Limits(agreement=0.95, bytes=2 * len(data))).passed


def test_nothing_left_to_quantise_is_said(fragile):
    """Prevents: keep_float with every layer's name ends in an error without a word."""
    data, rows, reference = fragile
    with pytest.raises(RecipeError, match="nothing is left to quantise: got 3 nodes kept in float"):
        mixed(quantize.calibrated(data, rows), rows, reference, keep_float=("layers.0", "layers.1", "layers.2"))


def test_a_student_without_a_layer_to_quantise_is_said():
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("input", "logits")]
    graph = helper.make_graph([helper.make_node("Relu", ["input"], ["logits"], name="relu")], "nothing", ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    rows = RANDOM.normal(size=(64, 3)).astype(np.float32)
    with pytest.raises(RecipeError, match="nothing is left to quantise: got 0 nodes"):
        mixed(quantize.calibrated(made.SerializeToString(), rows), rows, rows)


def test_layers_that_were_asked_for_stay_float_too(fragile):
    data, rows, reference = fragile
    found = mixed(quantize.calibrated(data, rows), rows, reference, limits=Limits(agreement=0.95), keep_float=("layers.2",))
    assert found.kept[:2] == ("layers.2", "layers.1") and found.passed


def test_vectors_are_judged_by_their_direction(fragile):
    data, rows, reference = fragile
    ready = quantize.calibrated(data, rows)
    table = sensitivity(ready, rows, reference, vectors=True)
    assert [harm.cost.mse for harm in table] == sorted((harm.cost.mse for harm in table), reverse=True)
    found = mixed(ready, rows, reference, vectors=True)
    assert found.passed and found.cost.cosine >= 0.99


def test_answers_of_other_rows_are_refused(fragile):
    data, rows, reference = fragile
    with pytest.raises(DataError, match="199 answers"):
        sensitivity(quantize.calibrated(data, rows), rows, reference[:-1])
