"""One battery over every architecture in `models/`."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import safetensors.torch
import torch
from torch import nn

from understudy import kinds
from understudy.architecture import Architecture
from understudy.errors import RecipeError
from understudy.students.weights import check_fit, fill, serialise

NAMES = kinds.names("models")
TABLES = {"mlp", "linear", "pruned"}
"""Architectures that take rows of numbers too."""
LANGUAGE = {arch for arch in NAMES if kinds.architecture({"arch": arch}).tells}
"""Architectures that say at every place of a text which token comes next, or stands there: (B, L) -> (B, L, tokens)."""
VECTORS = {arch for arch in NAMES if kinds.architecture({"arch": arch}).gives_vectors}
"""Architectures that give one vector a text: (B, L) -> (B, W), of a width of their own, without an output layer."""
TEXTS = {"bag", "textcnn", "bilstm", "pretrained"} | LANGUAGE | VECTORS
"""Architectures that take rows of tokens, and nothing else."""
WORDS = {"vocabulary": 40, "pad": 3}
TINY = {"model_type": "bert", "vocab_size": 40, "pad_token_id": 3, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 12, "max_position_embeddings": 20, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
LLAMA = {"model_type": "llama", "vocab_size": 40, "pad_token_id": 3, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "intermediate_size": 12, "max_position_embeddings": 20}
NEEDED = {"bag": WORDS, "textcnn": WORDS, "bilstm": WORDS, "pretrained": {"config": TINY}, "causal": {"config": LLAMA},
          "masked": {"config": TINY}, "decoder": WORDS | {"width": 16, "layers": 2}, "embedder": {"config": TINY},
          "static": WORDS | {"width": 8}, "pruned": {"base": {"arch": "mlp", "hidden": [6]}}}
"""What has no default that could be built."""
SHAPES = [(1, 8, 8), (3, 9, 11), (4, 28, 28), (3, 32, 32)]
OTHER = {
    "mlp": {"hidden": (5, 4), "dropout": 0.5, "input_dropout": 0.5, "edges": ((0.0, 1.0), ())}, "linear": {},
    "cnn": {"width": 5, "kernel": 5, "norm": "none", "dropout": 0.5}, "resnet": {"depth": 8, "width": 2},
    "wrn": {"depth": 10, "width": 1, "dropout": 0.5}, "vgg": {"depth": 11, "width": 4},
    "mobilenetv2": {"width": 0.25, "expansion": 2}, "shufflenetv2": {"width": 0.5},
    "bag": {"width": 5, "hidden": (4,), "dropout": 0.5, "vocabulary": 41, "pad": 4},
    "textcnn": {"width": 5, "filters": 3, "spans": (1, 3), "dropout": 0.5, "vocabulary": 41, "pad": 4},
    "bilstm": {"width": 5, "hidden": 3, "layers": 2, "dropout": 0.5, "vocabulary": 41, "pad": 4},
    "pretrained": {"config": TINY | {"hidden_size": 12}, "dropout": 0.5},
    "causal": {"config": LLAMA | {"hidden_size": 12}, "dropout": 0.5, "start": 10},
    "masked": {"config": TINY | {"hidden_size": 12}, "dropout": 0.5, "start": 10, "pad": 4},
    "decoder": {"width": 24, "layers": 3, "heads": 2, "kv_heads": 2, "inner": 20, "tied": False, "dropout": 0.5, "vocabulary": 41, "pad": 4,
                "start": 10, "rope_base": 50.0},
    "embedder": {"config": TINY | {"hidden_size": 12}, "pooling": "cls", "normalise": True, "dropout": 0.5},
    "static": {"width": 5, "normalise": False, "vocabulary": 41, "pad": 4},
    "pruned": {"base": {"arch": "mlp", "hidden": [7]}, "sizes": {"layers.0": (4, 768), "head": (5, 4)}}}
"""For every field a value that is not the default."""


def usual(arch):
    """The shape of an input that this architecture takes."""
    return (9,) if arch in TEXTS else (3, 16, 16)


def build(arch, shape=None, seed=0, **options):
    torch.manual_seed(seed)
    options = NEEDED.get(arch, {}) | options
    classes = options.get("vocabulary", 40) if arch in LANGUAGE else 5
    return kinds.configure("models", arch, options).build(shape or usual(arch), classes)


def some(arch, rows, shape=None, generator=None):
    """Inputs: numbers, or tokens of texts of different lengths, filled up with the padding."""
    shape = shape or usual(arch)
    if arch not in TEXTS:
        return torch.randn(rows, *shape, generator=generator)
    tokens = torch.randint(5, 40, (rows, *shape), generator=generator)
    for row in range(1, rows):
        tokens[row, shape[0] - row % 4:] = WORDS["pad"] if row % 4 else tokens[row, -1]
    return tokens


def settled(module, shape):
    """In eval mode, with running statistics of some data, so that batch norm is not the identity."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 1.0
    torch.manual_seed(1)
    with torch.no_grad():
        if any(isinstance(part, nn.BatchNorm2d) for part in module.modules()):
            module.train()(torch.randn(8, *shape) * 2 + 1)
    return module.eval()


@pytest.mark.parametrize(
    ("arch", "shape"),
    [(arch, shape) for arch in NAMES if arch not in VECTORS for shape in ([(5,), (17,)] if arch in TEXTS else SHAPES)])
def test_logits_are_the_head_of_the_features(arch, shape):
    module = settled(build(arch, shape), shape)
    x = some(arch, 3, shape)
    features = module.features(x)
    rows, classes = ((3, *shape), 40) if arch in LANGUAGE else ((3,), 5)
    assert features.shape[:-1] == rows and isinstance(module.head, nn.Linear) and module.head.out_features == classes
    logits = module(x)
    assert logits.shape == (*rows, classes) and logits.dtype == torch.float32 and bool(torch.isfinite(logits).all())
    assert torch.equal(logits, module.head(features))


@pytest.mark.parametrize("arch", sorted(VECTORS))
def test_a_vector_has_the_models_own_width_and_passes_through_its_last_module(arch):
    """Objectives on layers tap `vector`: what they match has to be what the model gives."""
    module, seen = build(arch).eval(), []
    module.vector.register_forward_hook(lambda part, given, found: seen.append(found))
    x = some(arch, 3)
    found = module(x)
    assert found.shape == (3, 8) and found.dtype == torch.float32 and torch.equal(found, seen[0])
    unit = build(arch, normalise=True).eval()(x)
    torch.testing.assert_close(unit, torch.nn.functional.normalize(build(arch, normalise=False).eval()(x), dim=1))
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("arch", NAMES)
def test_what_an_architecture_says_of_itself_fits_its_fields(arch):
    """A run looks for a tokenizer at `path`, and writes what it settled to `settled_by`: a field that is not there is never set."""
    known, fields = kinds.architecture({"arch": arch}), kinds.fields("models", arch)
    assert known.reads_folder == ("path" in fields) and (not known.reads_folder or "config" in fields)
    assert known.settled_by is None or known.settled_by in fields
    assert not known.ready or known.reads_folder
    assert not (known.tells and known.gives_vectors)


def test_a_model_that_is_no_file_says_nothing_of_itself():
    for model in ({}, {"factory": "a:b"}, {"arch": "_common"}, {"arch": "unknown"}):
        assert kinds.architecture(model) is Architecture


@pytest.mark.parametrize("arch", NAMES)
def test_rows_do_not_touch_each_other_in_eval_mode(arch):
    """A mean over the batch axis instead of the positions gives plausible logits that depend on the neighbours."""
    module = settled(build(arch), usual(arch))
    x = some(arch, 4)
    logits = module(x)
    assert float(logits.detach().std(dim=0).max()) > 1e-3, "rows must differ, else this test sees nothing"
    for row in range(4):
        torch.testing.assert_close(module(x[row:row + 1]), logits[row:row + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", NAMES)
def test_every_parameter_learns(arch):
    """A layer that is built and not called would count as parameters and stay at random."""
    module = build(arch).train()
    logits = module(some(arch, 8)).flatten(0, -2)
    torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % 5).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()) and bool((parameter.grad != 0).any()), name


@pytest.mark.parametrize("arch", NAMES)
def test_the_seed_makes_the_weights(arch):
    first, again, other = (build(arch, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("arch", NAMES)
def test_eval_mode_draws_nothing(arch):
    module = settled(build(arch, **{key: 0.5 for key in ("dropout",) if key in OTHER[arch]}), usual(arch))
    before = torch.get_rng_state()
    x = some(arch, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(x), module(x)) and torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("arch", NAMES)
def test_the_configuration_survives(arch):
    model = kinds.configure("models", arch, OTHER[arch])
    assert kinds.configure("models", arch, dataclasses.asdict(model)) == model


APART = ("path", "lora", "lora_alpha", "bins", "edges")
"""Adapters need a folder, and change no answer before they have learnt: tests/models/test_adapters.py. Bins need each other, and a table:
tests/models/test_mlp.py."""
FIELDS = [(arch, field) for arch in NAMES for field in kinds.fields("models", arch) if field not in APART]


@pytest.mark.parametrize(("arch", "field"), FIELDS)
def test_every_field_changes_the_model(arch, field):
    """A field that is read by nobody makes two recipes look different that train the same model."""
    default = getattr(kinds.configure("models", arch, NEEDED.get(arch, {})), field)
    assert OTHER[arch][field] != default
    outputs = []
    for options in ({}, {field: OTHER[arch][field]}):
        module = build(arch, **options).train()
        torch.manual_seed(2)
        outputs.append(module(some(arch, 8)))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("arch", sorted(set(NAMES) - TABLES - TEXTS))
@pytest.mark.parametrize("shape", [(3, 7, 32), (12,), (8, 8)])
def test_what_is_no_picture_of_8_pixels_is_refused(arch, shape):
    with pytest.raises(RecipeError, match=arch):
        build(arch, shape)


@pytest.mark.parametrize("arch", sorted(TABLES))
@pytest.mark.parametrize("shape", [(1,), (12,), (2, 3), (1, 3, 3)])
def test_rows_of_any_shape_are_taken(arch, shape):
    assert build(arch, shape)(torch.randn(2, *shape)).shape == (2, 5)


@pytest.mark.parametrize("arch", NAMES)
def test_weights_go_out_and_in_by_name(arch, tmp_path):
    source, target = settled(build(arch), usual(arch)), build(arch, seed=1).eval()
    tensors = safetensors.torch.load(serialise(source))
    check_fit(target, tensors, tmp_path / "weights")
    fill(target, tensors)
    x = some(arch, 2)
    assert torch.equal(source(x), target(x))


@pytest.mark.parametrize("arch", NAMES)
def test_a_copy_is_independent(arch):
    module = build(arch)
    twin = copy.deepcopy(module)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert bool((next(module.parameters()) != 0).any())


@pytest.mark.parametrize("arch", sorted(TEXTS))
def test_padding_changes_nothing(arch):
    """Prevents: a text gets another answer in a batch with a longer one."""
    module = build(arch).eval()
    x = some(arch, 3)[:1, :5]
    padded = torch.nn.functional.pad(x, (0, 4), value=WORDS["pad"])
    found = module(padded)
    torch.testing.assert_close(found[:, :5] if arch in LANGUAGE else found, module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", sorted(TEXTS))
def test_a_text_without_a_token_has_an_answer(arch):
    assert bool(torch.isfinite(build(arch).eval()(torch.full((2, 4), WORDS["pad"]))).all())


@pytest.mark.parametrize("arch", sorted(TEXTS))
@pytest.mark.parametrize("shape", [(3, 7, 32), (8, 8)])
def test_what_is_no_text_is_refused(arch, shape):
    with pytest.raises(RecipeError, match="text"):
        build(arch, shape)
