"""students/taps.py: named layers are captured as they are, and nothing is left in a module afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.errors import DataError, RecipeError
from understudy.students import taps
from understudy.students.taps import Taps

X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Blocks(nn.Module):
    """Two blocks of two convolutions, a layer that is never called, and one that gives no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(1 if i == 0 else 2, 2, 3, padding=1), nn.ReLU()) for i in range(2))
        self.idle = nn.Linear(2, 2)
        self.pair = Pair()
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.pair(x)[0].mean((2, 3)))


class Pair(nn.Module):
    def forward(self, x):
        return x, x


@pytest.fixture
def model():
    torch.manual_seed(1)
    return Blocks()


def hooks(module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def build(arch, shape=(1, 8, 8), classes=4, **options):
    torch.manual_seed(0)
    return kinds.configure("models", arch, options).build(shape, classes)


def seen(arch, shape=(1, 8, 8), **options):
    return taps.listing(build(arch, shape, **options), torch.randn(2, *shape))


# --- paths


@pytest.mark.parametrize(
    ("tap", "near"),
    [
        ("layer2.0.conv3", ["layer2.0.conv1", "layer2.0.conv2"]),
        ("layer2.0.conv3:input", ["layer2.0.conv1", "layer2.0.conv2"]),
        ("layer3.7.conv1", ["layer3.0.conv1"]),
        ("layers2.0.conv1", ["layer2.0.conv1"]),
        ("features.conv2", [".conv2"]),
    ],
)
def test_near_layers_come_from_the_deepest_part_that_is_there(tap, near):
    """Prevents: "layer2.0.conv3" is answered with a layer of another stage that happens to be spelt alike."""
    paths = [name for name, _ in build("resnet", shape=(3, 16, 16), depth=8).named_modules() if name]
    with pytest.raises(RecipeError) as refused:
        taps.expand(build("resnet", shape=(3, 16, 16), depth=8), [tap], "the student")
    said = str(refused.value).split("a path such as ")[1].split(". Nothing")[0].split(", ")
    assert 1 <= len(said) <= 3 and set(said) <= set(paths)
    assert all(any(one.endswith(wanted) for one in said) for wanted in near)
    assert all(one.startswith(tap.rpartition(".")[0]) for one in said) or tap.rpartition(".")[0] not in paths


def test_outputs_and_inputs_are_those_of_the_layer(model):
    """By hand: the same layers called one after the other."""
    captured = Taps(model, ["blocks.0", "blocks.1.0:input", "blocks.1.0", "blocks.1.1:output", "head:input"])
    model(X)
    found = captured.take()
    first = model.blocks[0](X)
    second = model.blocks[1][0](first)
    expected = {"blocks.0": first, "blocks.1.0:input": first, "blocks.1.0": second, "blocks.1.1": second.relu(),
                "head:input": second.relu().mean((2, 3))}  # fmt: skip
    assert found.keys() == expected.keys(), "`:output` is the path alone"
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_globs_stand_for_all_that_match_in_the_order_of_the_module(model):
    assert taps.expand(model, ["blocks.?"], "it") == ["blocks.0", "blocks.1"]
    assert taps.expand(model, ["blocks.*.1:input", "head"], "it") == ["blocks.0.1:input", "blocks.1.1:input", "head"]
    all_of_it = ["blocks.0", "blocks.0.0", "blocks.0.1", "blocks.1.0", "blocks.1.1"]
    assert taps.expand(model, ["blocks.[1]", "blocks.*"], "it") == ["blocks.1", *all_of_it], "each once"


@pytest.mark.parametrize(("tap", "near"), [
    ("block.0", "blocks.0"), ("blocks.1.O", "blocks.1.0"), ("heda", "head"), ("blocks.2", "blocks.")])  # fmt: skip
def test_a_path_that_is_not_there_names_the_nearest(model, tap, near):
    """Prevents: a misspelt path captures nothing and the term does nothing."""
    with pytest.raises(RecipeError, match="the student has no layer") as error:
        Taps(model, [tap], "the student")
    assert near in str(error.value).split("expected", 1)[1] and hooks(model) == 0


def test_a_glob_without_a_match_and_an_unknown_side_are_refused(model):
    with pytest.raises(RecipeError, match="no layer nothing"):
        taps.expand(model, ["nothing*"], "it")
    with pytest.raises(RecipeError, match="no side"):
        taps.expand(model, ["head:inputs"], "it")


@pytest.mark.parametrize("layers", [{}, {"": "a"}, {"a": ""}])
def test_a_mapping_that_names_nothing_is_refused(layers):
    with pytest.raises(RecipeError, match="names nothing"):
        taps.check_layers(layers)


# --- capturing


@pytest.mark.parametrize(("tap", "got"), [("idle", "no call"), ("pair", "tuple")])
def test_a_layer_that_captures_nothing_is_an_error_not_a_zero(model, tap, got):
    captured = Taps(model, [tap], "the student")
    model(X)
    with pytest.raises(DataError, match=got):
        captured.take()


def test_nothing_is_taken_twice(model):
    """Prevents: a term compares this batch with the features of the one before."""
    captured = Taps(model, ["blocks.0"])
    model(X)
    captured.take()
    with pytest.raises(DataError, match="no call"):
        captured.take()


def test_the_last_of_several_passes_counts_and_carries_its_gradient(model):
    captured = Taps(model, ["blocks.0"])
    model(X)
    model(2 * X)
    found = captured.take()["blocks.0"]
    torch.testing.assert_close(found, model.blocks[0](2 * X))
    found.sum().backward()
    assert model.blocks[0][0].weight.grad.abs().sum() > 0


def test_without_taps_there_are_no_hooks_and_after_release_none_are_left(model):
    assert Taps(model, []).take() == {} and hooks(model) == 0
    captured = Taps(model, ["blocks.0", "head:input"])
    assert hooks(model) == 2
    model(X)
    captured.remove()
    assert hooks(model) == 0 and captured.captured == {}, "and no tensor with its graph is kept alive"


def test_two_owners_do_not_take_each_others_captures(model):
    one, other = Taps(model, ["blocks.0"]), Taps(model, ["blocks.0"])
    model(X)
    torch.testing.assert_close(one.take()["blocks.0"], other.take()["blocks.0"])
    one.remove()
    model(X)
    assert set(other.take()) == {"blocks.0"}


@pytest.mark.parametrize("training", [True, False])
def test_looking_leaves_the_module_as_it_was(training):
    """Prevents: asking for shapes moves batch norm's statistics, or puts a student into eval mode."""
    module = build("resnet", depth=8, width=4).train(training)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rows = taps.listing(module, X)
    assert taps.shapes(module, ["layer1", "linear:input"], X) == {
        "layer1": next(one.shape for one in rows if one.tap == "layer1"), "linear:input": (module.head.in_features,)}  # fmt: skip
    assert module.training is training and hooks(module) == 0
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_looking_leaves_every_part_in_its_mode():
    """Prevents: a batch norm that was frozen (in eval mode inside a model that trains) moves its statistics from then on."""
    module = build("resnet", depth=8, width=4).train()
    frozen = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)][:2]
    for part in frozen:
        part.eval()
    before = [part.training for part in module.modules()]
    taps.listing(module, X)
    assert [part.training for part in module.modules()] == before
    taps.shapes(module, ["layer1"], X)
    assert [part.training for part in module.modules()] == before
    with pytest.raises(RuntimeError):
        taps.shapes(module, ["layer1"], torch.zeros(1, 5, 8, 8))
    assert [part.training for part in module.modules()] == before and not any(part.training for part in frozen)


def test_hooks_go_where_looking_fails(model):
    with pytest.raises(DataError):
        taps.shapes(model, ["idle"], X)
    with pytest.raises(RuntimeError):
        taps.listing(model, torch.zeros(1, 5, 8, 8))
    assert hooks(model) == 0


def test_the_list_says_what_each_layer_did(model):
    rows = {one.tap: one for one in taps.listing(model, X)}
    assert rows["blocks.0.0"].shape == (2, 8, 8) and rows["blocks.0.0"].input_shape == (1, 8, 8)
    assert rows["blocks.0.0"].parameters == 2 * 9 + 2 and rows["head"].shape == (3,) and rows["pair"].shape is None
    assert "idle" not in rows, "a layer that is not called can't be tapped"


@pytest.mark.slow
def test_taps_work_under_a_compiled_step():
    """Hooks that are there before the first compiled call are traced with it: captures and gradients are those of the eager model.

    The backend is "eager", which traces the graph as the others do without a C++ compiler.
    """
    found = []
    for compiled in (False, True):
        torch.manual_seed(1)
        model = Blocks()
        captured = Taps(model, ["blocks.0", "head:input"])

        def step(x, model=model, captured=captured):
            logits = model(x)
            return logits, captured.take()

        call = torch.compile(step, backend="eager") if compiled else step
        for scale in (1.0, 2.0):
            logits, features = call(scale * X)
        (logits.sum() + features["blocks.0"].square().sum()).backward()
        found.append([features["blocks.0"].detach(), features["head:input"].detach(), model.blocks[0][0].weight.grad])
    for eager, traced in zip(*found, strict=True):
        torch.testing.assert_close(traced, eager)


# --- layers: auto


FAMILIES = {
    "resnet": {"depth": 8, "width": 4}, "vgg": {"width": 8}, "mobilenetv2": {}, "cnn": {"width": 4}, "shufflenetv2": {},
    "wrn": {"depth": 10, "width": 1}}  # fmt: skip


@pytest.mark.parametrize("arch", FAMILIES)
def test_stages_are_the_last_map_of_each_size(arch):
    rows = seen(arch, (3, 16, 16), **FAMILIES[arch])
    found = taps.stages(rows)
    sizes = list(found)
    assert sizes and sizes == sorted(sizes, reverse=True), "from large to small"
    by_tap = {one.tap: one for one in rows}
    for size, tap in found.items():
        assert by_tap[tap].shape[1:] == size
        later = rows[rows.index(by_tap[tap]) + 1 :]
        assert not [one for one in later if one.shape is not None and len(one.shape) == 3 and one.shape[1:] == size]


@pytest.mark.parametrize("teacher", FAMILIES)
@pytest.mark.parametrize("student", ["resnet", "mobilenetv2", "cnn"])
def test_maps_are_paired_by_their_size_or_by_depth(student, teacher):
    mine, theirs = seen(student, (3, 16, 16), **FAMILIES[student]), seen(teacher, (3, 16, 16), **FAMILIES[teacher])
    pairs = taps.resolve("maps", mine, theirs)
    shapes = {one.tap: one.shape for one in mine}, {one.tap: one.shape for one in theirs}
    common = taps.stages(mine).keys() & taps.stages(theirs).keys()
    assert len(pairs) == (len(common) or len(taps.stages(mine)))
    for left, right in pairs.items():
        assert len(shapes[0][left]) == len(shapes[1][right]) == 3
        assert not common or shapes[0][left][1:] == shapes[1][right][1:]
    assert taps.resolve("last", mine, theirs) == dict(list(pairs.items())[-1:])


@pytest.mark.parametrize("arch", [*FAMILIES, "mlp", "linear"])
def test_the_vector_is_what_goes_into_the_last_linear_layer(arch):
    shape = (3, 16, 16)
    module, batch = build(arch, shape, **FAMILIES.get(arch, {})), torch.randn(2, *shape)
    [(mine, theirs)] = taps.resolve("vectors", taps.listing(module, batch), seen("mlp", (6,), hidden=[5])).items()
    [head] = [name for name, part in module.named_modules() if part is module.head]
    assert mine == f"{head}:input" and theirs == "head:input"
    assert taps.shapes(module, [mine], batch)[mine] == (module.head.in_features,)


def test_sizes_that_never_meet_are_paired_by_relative_depth():
    """An 8 x 8 student beside a 12 x 12 teacher has no map in common: shallow goes to shallow, last to last."""
    mine, theirs = seen("resnet", (1, 8, 8), depth=8), seen("resnet", (1, 12, 12), depth=8)
    left, right = taps.stages(mine), taps.stages(theirs)
    assert not left.keys() & right.keys()
    pairs = taps.resolve("maps", mine, theirs)
    assert list(pairs) == list(left.values())
    assert pairs[list(left.values())[0]] == list(right.values())[0] and pairs[list(left.values())[-1]] == list(right.values())[-1]


def test_preactivations_are_what_goes_into_the_last_relu_of_each_size():
    rows = seen("vgg", (3, 16, 16), width=8)
    relus = {one.tap for one in rows if one.kind.startswith("ReLU")}
    pairs = taps.resolve("preactivations", rows, rows)
    assert pairs and all(mine == theirs and mine.removesuffix(":input") in relus for mine, theirs in pairs.items())
    assert all(mine.endswith(":input") for mine in pairs)
    assert len(pairs) == len(taps.activated(rows))


def test_models_without_maps_are_paired_by_position():
    student, teacher = seen("mlp", (6,), hidden=[5, 4]), seen("mlp", (6,), hidden=[7, 6])
    pairs = taps.resolve("maps", student, teacher)
    names = [one.tap for one in student if one.kind == "Linear"]
    assert list(pairs) == names[:-1] and list(pairs.values()) == names[:-1], "the output layer is left out"


def encoder(layers, inner=12):
    pytest.importorskip("transformers")
    config = {"model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2,
              "intermediate_size": inner, "max_position_embeddings": 12, "pad_token_id": 0}  # fmt: skip
    module = kinds.configure("models", "masked", {"config": config}).build((6,), 20)
    return taps.listing(module, torch.ones(2, 6, dtype=torch.int64))


@pytest.mark.parametrize(("auto", "pairs"), [
    ("blocks", {0: 1, 1: 3}), ("inner blocks", {0: 1}), ("last block", {1: 3}), ("attention", {0: 1, 1: 3}), ("last attention", {1: 3}),
])  # fmt: skip
def test_blocks_of_text_are_paired_by_relative_depth_the_last_with_the_last(auto, pairs):
    end = ".attention.self.query" if "attention" in auto else ""
    path = "model.bert.encoder.layer.{}" + end
    assert taps.resolve(auto, encoder(2), encoder(4)) == {path.format(mine): path.format(theirs) for mine, theirs in pairs.items()}


def test_depths_that_do_not_divide_pair_every_layer_with_a_later_one():
    found = taps.resolve("blocks", encoder(3), encoder(4))
    assert [int(theirs.rpartition(".")[2]) for theirs in found.values()] == [0, 2, 3]


@pytest.mark.parametrize(("auto", "mine"), [("inner blocks", 1), ("blocks", None)])
def test_models_without_blocks_to_match_are_refused(auto, mine):
    with pytest.raises(RecipeError, match="blocks can be found to match"):
        taps.resolve(auto, encoder(mine) if mine else seen("cnn", width=4), encoder(2))


def test_nothing_to_match_is_refused():
    with pytest.raises(RecipeError, match="the student has no layer that could be matched"):
        taps.resolve("maps", seen("linear", (6,)), seen("mlp", (6,)))
    with pytest.raises(RecipeError, match="no linear layer"):
        taps.resolve("vectors", taps.listing(nn.Sequential(nn.Conv2d(1, 2, 3)), X), seen("mlp", (6,)))
