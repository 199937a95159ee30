"""students/cut_llama.py: what is cut out of a decoder computes what the decoder computes without the rest."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.compress.part_importance import Importance, activation, chosen, magnitude, taylor
from understudy.errors import RecipeError
from understudy.students import cut_llama, from_teacher
from understudy.students.from_teacher import Cut, Sizes, cut
from understudy.students.weights import fill

START = 2
SHAPES = [{}, {"tied": False}, {"kv_heads": 4}, {"kv_heads": 1, "tied": False}]
OPTIONS = {"width": 24, "layers": 3, "heads": 4, "kv_heads": 2, "inner": 20, "vocabulary": 30, "pad": 1, "start": START}
CONFIG = {"vocab_size": 29, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 4,
          "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}  # fmt: skip
TOKENS = torch.tensor([[START, 5, 6, 7, 8, 9, 11, 12], [START, 11, 12, START, 13, 29, 3, 4]])
THERE = torch.ones_like(TOKENS, dtype=torch.bool)


def build(seed=0, **options):
    torch.manual_seed(seed)
    module = kinds.configure("models", "decoder", OPTIONS | options).build((8,), 30).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # far from the small start, so that attention is not uniform
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def sizes(module):
    model = module.sizes
    return Sizes(model.layers, model.width, model.heads, model.groups, model.width // model.heads, model.units)


def student(teacher, kept, now, **options):
    """A decoder of these sizes with what is cut out of the teacher."""
    made = build(9, **options | {"width": now.width, "layers": now.layers, "heads": now.heads, "kv_heads": now.groups, "inner": now.inner})
    state = cut(cut_llama, teacher.state_dict(), kept, sizes(teacher))
    assert state.keys() == made.state_dict().keys()
    fill(made, state)
    return made


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def everything(had):
    return Cut(tuple(range(had.layers)), torch.arange(had.width), (torch.arange(had.heads),) * had.layers,
               (torch.arange(had.inner),) * had.layers)  # fmt: skip


@pytest.mark.parametrize("options", SHAPES)
def test_with_all_kept_it_is_the_teacher(options):
    teacher = build(**options)
    had = sizes(teacher)
    for kept in (everything(had), Cut((0, 1, 2))):
        made = student(teacher, kept, had, **options)
        assert torch.equal(made(TOKENS), teacher(TOKENS))


@pytest.mark.parametrize("layers", [(0, 2), (1,), (2, 0)])
def test_layers_are_the_teacher_s_without_the_others(layers):
    teacher = build()
    shorter = copy.deepcopy(teacher)
    shorter.model.layers = nn.ModuleList(teacher.model.layers[at] for at in layers)
    made = student(teacher, Cut(layers), from_teacher.smaller(sizes(teacher), layers, filled=True))
    assert torch.equal(made(TOKENS), shorter(TOKENS))


@pytest.mark.parametrize("options", SHAPES)
def test_heads_and_units_are_the_teacher_s_with_the_others_silent(options):
    """By a folder of the library, whose heads need not fill the width."""
    transformers = pytest.importorskip("transformers")
    had = Sizes.of(CONFIG | {"num_key_value_heads": options.get("kv_heads", 2)})
    config = CONFIG | {"model_type": "llama", "num_key_value_heads": had.groups, "tie_word_embeddings": options.get("tied", True)}
    teacher = library(transformers, config)
    for count in (count for count in had.possible if 16 % count == 0):
        now = from_teacher.smaller(had, (0, 1, 2), heads=count, inner=6, filled=False)
        scores = Importance(torch.ones(16), [torch.rand(4) for _ in range(3)], [torch.rand(20) for _ in range(3)])
        kept = chosen(scores, (0, 1, 2), had, now)
        silent = copy.deepcopy(teacher)
        with torch.no_grad():
            for layer, heads, units in zip(silent.model.model.layers, kept.heads, kept.inner, strict=True):
                for head in set(range(4)) - set(heads.tolist()):
                    layer.self_attn.o_proj.weight[:, 4 * head : 4 * head + 4] = 0
                layer.mlp.down_proj.weight[:, sorted(set(range(20)) - set(units.tolist()))] = 0
        made = library(transformers, cut_llama.configured(config, (0, 1, 2), heads=count, inner=6), seed=5)
        fill(made, cut(cut_llama, teacher.state_dict(), kept, had))
        close(made(TOKENS % 29), silent(TOKENS % 29))


def library(transformers, config, seed=0):
    torch.manual_seed(seed)
    module = kinds.configure("models", "causal", {"config": config, "start": START}).build((8,), 29).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return module


@pytest.mark.parametrize("kind", cut_llama.KINDS)
@pytest.mark.parametrize("wanted", [{}, {"width": 12}, {"heads": 2, "inner": 7}, {"width": 9, "heads": 3, "inner": 7}])
def test_every_kind_of_folder_that_is_named_can_be_cut(kind, wanted):
    """With everything it is the teacher; narrower its tensors are the student's, name by name, and it answers."""
    transformers = pytest.importorskip("transformers")
    extra = {"head_dim": 6} if kind == "qwen3" else {}
    config = kinds.configure("models", "causal", {"config": CONFIG | {"model_type": kind, "num_key_value_heads": 4} | extra})
    config = config.configuration().to_dict()
    had = Sizes.of(config)
    teacher = library(transformers, config)
    layers = (0, 1, 2) if not wanted else (0, 2)
    made_config = cut_llama.configured(config, layers, **wanted)
    made, now = library(transformers, made_config, seed=5), Sizes.of(made_config)
    found = activation(cut_llama, teacher, [(TOKENS % 29, THERE)], had)
    state = cut(cut_llama, teacher.state_dict(), chosen(found, layers, had, now), had)
    assert {name: value.shape for name, value in state.items()} == {name: value.shape for name, value in made.state_dict().items()}
    fill(made, state)
    if wanted:
        assert made(TOKENS % 29).isfinite().all()
    else:
        assert torch.equal(made(TOKENS % 29), teacher(TOKENS % 29))


def shuffled(teacher, seed=3):
    """(the same function with its places, units and heads in another order, the order of each), groups staying together."""
    had, generator = sizes(teacher), torch.Generator().manual_seed(seed)

    def order(count):
        return torch.randperm(count, generator=generator)

    heads = []
    for _ in range(had.layers):
        heads.append(torch.cat([group * had.shared + order(had.shared) for group in order(had.groups).tolist()]))
    orders = Cut(tuple(range(had.layers)), order(had.width), tuple(heads), tuple(order(had.inner) for _ in range(had.layers)))
    made, size = copy.deepcopy(teacher), had.head
    with torch.no_grad():
        for name, value in teacher.state_dict().items():
            parts = name.split(".")
            if "layers" not in parts:
                made.state_dict()[name].copy_(value[..., orders.hidden])
                continue
            at, part = int(parts[2]), parts[-2]
            own = from_teacher.places(orders.heads[at], size)
            keys = from_teacher.places(orders.heads[at][:: had.shared] // had.shared, size)
            rows = {"q_proj": own, "k_proj": keys, "v_proj": keys, "gate_proj": orders.inner[at], "up_proj": orders.inner[at]}
            moved = value[rows.get(part, orders.hidden)]
            columns = {"o_proj": own, "down_proj": orders.inner[at]}
            made.state_dict()[name].copy_(moved[:, columns.get(part, orders.hidden)] if value.ndim == 2 else moved)
    return made, orders


MEASURES = {
    "activation": lambda module, had: activation(cut_llama, module, [(TOKENS, THERE)], had),
    "magnitude": lambda module, had: magnitude(cut_llama, module, had),
    "taylor": lambda module, had: taylor(cut_llama, module, [(TOKENS, TOKENS.roll(-1, 1))], had)}  # fmt: skip


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("options", "width"), [
    (options, width) for options in SHAPES for width in (6, 12, 24) if width > 6 or options.get("kv_heads", 2) != 2])
def test_the_order_of_places_heads_and_units_does_not_matter(options, width, measure):
    """The same function written in another order is cut to the same smaller function."""
    important = MEASURES[measure]
    teacher = build(**options)
    had = sizes(teacher)
    other, orders = shuffled(teacher)
    close(other(TOKENS), teacher(TOKENS))
    now = from_teacher.smaller(had, (0, 2), width=width, inner=9, filled=True)
    made = []
    for module in (teacher, other):
        found = important(module, had)
        made.append(student(module, chosen(found, (0, 2), had, now), now, **options))
    close(made[1](TOKENS), made[0](TOKENS))
    found, moved = (important(module, had) for module in (teacher, other))
    close(moved.hidden, found.hidden[orders.hidden])
    for at in range(3):
        close(moved.heads[at], found.heads[at][orders.heads[at]])
        close(moved.inner[at], found.inner[at][orders.inner[at]])


@pytest.mark.parametrize("options", SHAPES)
def test_importance_is_its_formula(options):
    """In float64, from the weights: what each norm, head and unit says of each token, its mean over a text, the norm over texts."""
    teacher = build(**options).double()
    had, there = sizes(teacher), THERE.clone()
    there[1, 5:] = False
    found = activation(cut_llama, teacher, [(TOKENS[:1], there[:1]), (TOKENS[1:], there[1:])], had)
    hidden = torch.zeros(had.width, dtype=torch.float64)
    heads, inner = (torch.zeros(3, count, dtype=torch.float64) for count in (had.heads, had.inner))
    said: dict[str, list[torch.Tensor]] = {}

    def collect(name, values):
        said.setdefault(name, []).append(values)

    for row in range(2):
        own = there[row]
        stream = teacher.model.embed_tokens(TOKENS[row : row + 1])
        length = TOKENS.shape[1]
        seen = torch.tensor([[j <= i and (TOKENS[row, j + 1 : i + 1] != START).all() for j in range(length)] for i in range(length)])
        angles = torch.outer(torch.arange(length).double(), teacher.speeds.double())
        for at, layer in enumerate(teacher.model.layers):
            normed = normal(stream, layer.input_layernorm.weight)
            collect(f"norm {at}", normed[0, own].abs().mean(0))
            attention = layer.self_attn
            outputs = []
            for head in range(had.heads):
                group = head // had.shared
                query, key, value = (
                    (normed @ part.weight[had.head * which : had.head * (which + 1)].T)[0]
                    for part, which in ((attention.q_proj, head), (attention.k_proj, group), (attention.v_proj, group)))
                scores = turned(query, angles) @ turned(key, angles).T / had.head**0.5
                outputs.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value)
            collect(f"heads {at}", torch.stack([one[own].square().sum(-1).sqrt().mean() for one in outputs]))
            stream = stream + torch.cat(outputs, -1)[None] @ attention.o_proj.weight.T
            normed = normal(stream, layer.post_attention_layernorm.weight)
            collect(f"middle norm {at}", normed[0, own].abs().mean(0))
            gate, up = normed @ layer.mlp.gate_proj.weight.T, normed @ layer.mlp.up_proj.weight.T
            units = gate * gate.sigmoid() * up
            collect(f"inner {at}", units[0, own].abs().mean(0))
            stream = stream + units @ layer.mlp.down_proj.weight.T
        collect("last norm", normal(stream, teacher.model.norm.weight)[0, own].abs().mean(0))
    for name, texts in said.items():
        total = torch.stack(texts).square().sum(0).sqrt().detach()
        if "norm" in name:
            hidden += total
        else:
            (heads if name.startswith("heads") else inner)[int(name[-1])] = total
    torch.testing.assert_close(found.hidden, hidden, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(torch.stack(found.heads), heads, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(torch.stack(found.inner), inner, rtol=1e-6, atol=1e-8)


def normal(x, weight):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def turned(x, angles):
    left, right = x.chunk(2, -1)
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], -1)


def test_what_says_nothing_is_the_least_important():
    """A head that writes nothing, a unit and a place that are always 0, are the first to go; padding has no say."""
    teacher = build()
    had = sizes(teacher)
    with torch.no_grad():
        layer = teacher.model.layers[1]
        layer.self_attn.v_proj.weight[:6] = 0
        layer.mlp.up_proj.weight[6] = 0
        for part in teacher.modules():
            if isinstance(part, nn.RMSNorm):
                part.weight[9] = 0
    found = activation(cut_llama, teacher, [(TOKENS, THERE)], had)
    assert found.hidden.argmin() == 9 and found.inner[1].argmin() == 6 and found.heads[1].argsort()[:2].sort().values.tolist() == [0, 1]
    longer, there = nn.functional.pad(TOKENS, (0, 4), value=1), nn.functional.pad(THERE, (0, 4))
    again = activation(cut_llama, teacher, [(longer, there)], had)
    close(again.hidden, found.hidden)
    close(torch.stack(again.inner), torch.stack(found.inner))


def test_layers_with_a_window_keep_theirs():
    types = ["full_attention", "sliding_attention", "full_attention"]
    made = cut_llama.configured(CONFIG | {"model_type": "qwen2", "layer_types": types}, (1, 2))
    assert made["layer_types"] == types[1:] and made["num_hidden_layers"] == 2
    assert cut_llama.configured(CONFIG | {"model_type": "qwen2", "layer_types": types}, 2)["layer_types"] == [types[0], types[2]]


def test_a_vocabulary_that_was_rounded_up_is_the_tokenizer_s():
    made = cut_llama.configured(CONFIG | {"model_type": "llama", "eos_token_id": 28}, (0,), vocabulary=20)
    assert made["vocab_size"] == 20 and made["eos_token_id"] is None and made["bos_token_id"] == 1


@pytest.mark.parametrize(("config", "wanted", "word"), [
    ({"model_type": "gpt2"}, {}, "can't cut this architecture: got gpt2.*llama"),
    ({"model_type": "gemma"}, {}, "can't cut this architecture: got gemma"),
    ({"num_key_value_heads": 2, "num_attention_heads": 8, "hidden_size": 32}, {"heads": 3}, "whole groups of 4"),
    ({}, {"width": 17}, "width is larger"), ({}, {"inner": 21}, "inner is larger"), ({}, {"heads": 5}, "heads is larger"),
    ({}, {"width": 14}, "a multiple of 4, or another number of heads")])
def test_what_can_t_be_cut_is_refused(config, wanted, word):
    with pytest.raises(RecipeError, match=word):
        cut_llama.configured({"model_type": "llama"} | CONFIG | config, (0,), **wanted)


def test_rows_longer_than_a_window_are_refused():
    cut_llama.refuse_window(CONFIG | {"sliding_window": 8}, 8)
    cut_llama.refuse_window(CONFIG | {"sliding_window": None}, 8)
    cut_llama.refuse_window(CONFIG | {"sliding_window": 3, "use_sliding_window": False}, 8)
    with pytest.raises(RecipeError, match="short window"):
        cut_llama.refuse_window(CONFIG | {"sliding_window": 3}, 8)
