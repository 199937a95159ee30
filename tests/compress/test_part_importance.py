"""compress/part_importance.py: which parts of a teacher are kept, by closed forms and slow twins."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from understudy import kinds
from understudy.compress.part_importance import Importance, activation, chosen, largest, magnitude, measured, taylor, weighed
from understudy.students import cut_bert, cut_llama, from_teacher
from understudy.students.from_teacher import Sizes

HAD = Sizes(layers=4, width=48, heads=12, groups=4, head=4, inner=20)
BERT = {"model_type": "bert", "vocab_size": 40, "pad_token_id": 3, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 6, "max_position_embeddings": 20}  # fmt: skip
TEXTS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 3, 3], [39, 5, 3, 3, 3], [7, 7, 5, 4, 3]])
DECODER = {"width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "inner": 10, "vocabulary": 30, "pad": 1, "start": 2}
WRITTEN = ("output.dense.weight", "output.dense.bias", "LayerNorm.weight", "LayerNorm.bias", "pooler.dense.weight", "pooler.dense.bias")
ROWS = torch.tensor([[2, 5, 6, 7, 8, 9], [2, 11, 12, 2, 13, 29], [2, 9, 8, 7, 6, 5]])


def squared(*weights):
    """The sum of the squares of all of these."""
    return sum(float(weight.double().square().sum()) for weight in weights)


def every(found):
    """All scores, as a list of tensors."""
    return [found.hidden, *found.heads, *found.inner]


def encoder():
    torch.manual_seed(0)
    return kinds.configure("models", "pretrained", {"config": BERT}).build((5,), 3).eval()


def decoder(**options):
    torch.manual_seed(0)
    return kinds.configure("models", "decoder", DECODER | options).build((6,), 30).eval()


def test_the_largest_are_kept_in_their_order():
    assert largest(torch.tensor([3.0, 1.0, 5.0, 3.0]), 3).tolist() == [0, 2, 3]
    assert largest(torch.tensor([2.0, 2.0, 2.0]), 2).tolist() == [0, 1]


@pytest.mark.parametrize("heads", HAD.possible)
def test_what_is_kept_is_the_largest_that_the_rule_allows(heads):
    """Of groups the sum of no other choice is larger, and of the heads of a group neither."""
    values = torch.randn(12, generator=torch.Generator().manual_seed(heads)).abs()
    now = from_teacher.smaller(HAD, (2,), heads=heads, width=10, inner=6, filled=False)
    hidden, inner = torch.randn(48).abs(), torch.randn(20).abs()
    kept = chosen(Importance(hidden, [values] * 4, [inner] * 4), (2,), HAD, now)
    assert len(kept.heads[0]) == heads and kept.heads[0].tolist() == sorted(kept.heads[0].tolist())
    groups: dict[int, list[int]] = {}
    for head in kept.heads[0].tolist():
        groups.setdefault(head // 3, []).append(head)
    assert len(groups) == now.groups and {len(own) for own in groups.values()} == {heads // now.groups}
    sums = [float(values[3 * group : 3 * group + 3].sum()) for group in range(4)]
    assert sum(sums[group] for group in groups) == pytest.approx(sum(sorted(sums)[-now.groups :]))
    for group, own in groups.items():
        mine = sorted(values[3 * group : 3 * group + 3].tolist())
        assert float(values[own].sum()) == pytest.approx(sum(mine[-len(own) :]))
    for places, scores, count in ((kept.hidden, hidden, 10), (kept.inner[0], inner, 6)):
        rest = [at for at in range(len(scores)) if at not in places.tolist()]
        assert len(places) == count and scores[places].min() >= scores[rest].max()


def test_what_is_measured_is_the_mean_over_tokens_and_the_norm_over_texts():
    """The formula written out, number by number; a text without tokens says nothing."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.layer = nn.Embedding(9, 6), nn.Linear(6, 4)

        def forward(self, tokens):
            return self.layer(self.embed(tokens))

    module = Table()
    tokens, there = torch.randint(0, 9, (5, 7)), torch.rand(5, 7) < 0.6
    there[3] = False
    parts = {"out": (module.layer, from_teacher.output_of), "in": (module.layer, from_teacher.input_of),
             "heads": (module.layer, from_teacher.lengths_of(3))}  # fmt: skip
    found = measured(module, parts, [(tokens[:2], there[:2]), (tokens[2:], there[2:])])
    read, said = module.embed(tokens).detach().double(), module(tokens).detach().double()
    for name, values in (("out", said), ("in", read), ("heads", torch.stack([read[..., :3].norm(dim=-1), read[..., 3:].norm(dim=-1)], -1))):
        for part in range(values.shape[-1]):
            total = 0.0
            for row in range(5):
                own = [abs(float(values[row, at, part])) for at in range(7) if there[row, at]]
                total += (sum(own) / len(own)) ** 2 if own else 0.0
            assert float(found[name][part]) == pytest.approx(math.sqrt(total), rel=1e-5)
    assert not module.layer._forward_hooks


@pytest.mark.parametrize("of", [torch.square, torch.abs])
def test_of_an_encoder_the_weights_that_a_part_reads_or_writes_with(of):
    """Named by hand, as an encoder of the library calls them."""
    state = {name: of(weight.double()) for name, weight in encoder().state_dict().items()}
    found = weighed(cut_bert, state, Sizes.of(BERT))
    for at in range(2):
        layer = f"bert.encoder.layer.{at}"
        for head in range(2):
            own = slice(4 * head, 4 * head + 4)
            names = [f"{layer}.attention.self.{part}.{kind}" for part in ("query", "key", "value") for kind in ("weight", "bias")]
            total = sum(state[name][own].sum() for name in names) + state[f"{layer}.attention.output.dense.weight"][:, own].sum()
            assert float(found.heads[at][head]) == pytest.approx(float(total))
        for unit in range(6):
            total = (state[f"{layer}.intermediate.dense.weight"][unit].sum() + state[f"{layer}.intermediate.dense.bias"][unit]
                     + state[f"{layer}.output.dense.weight"][:, unit].sum())
            assert float(found.inner[at][unit]) == pytest.approx(float(total))
    for place in range(8):
        total = torch.zeros((), dtype=torch.float64)
        for name, weight in state.items():
            if name.endswith(WRITTEN):
                total += weight[place].sum()
            if weight.ndim == 2 and not name.endswith("output.dense.weight"):
                total += weight[:, place].sum()
        assert float(found.hidden[place]) == pytest.approx(float(total))


@pytest.mark.parametrize("options", [{}, {"kv_heads": 4}, {"kv_heads": 1, "tied": False}])
def test_of_a_decoder_keys_and_values_are_shared_among_the_heads_that_read_them(options):
    """So that the heads of a group together have all of its weights, once."""
    module = decoder(**options).requires_grad_(False)
    model = module.sizes
    had = Sizes(model.layers, model.width, model.heads, model.groups, model.width // model.heads, model.units)
    found, layer = magnitude(cut_llama, module, had), module.model.layers[1]
    attention, net = layer.self_attn, layer.mlp
    for head in range(4):
        own, group = slice(6 * head, 6 * head + 6), head // had.shared
        theirs = slice(6 * group, 6 * group + 6)
        shared = [attention.k_proj.weight[theirs], attention.v_proj.weight[theirs]]
        total = squared(attention.q_proj.weight[own], attention.o_proj.weight[:, own]) + squared(*shared) / had.shared
        assert float(found.heads[1][head]) == pytest.approx(total)
    assert float(found.inner[1][3]) == pytest.approx(squared(net.gate_proj.weight[3], net.up_proj.weight[3], net.down_proj.weight[:, 3]))
    ends = squared(*(weight[..., 5] for name, weight in module.named_parameters()
               if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight", "norm.weight",
                                 "embed_tokens.weight", "lm_head.weight", "input_layernorm.weight", "post_attention_layernorm.weight"))))
    begins = squared(*(weight[5] for name, weight in module.named_parameters() if name.endswith(("o_proj.weight", "down_proj.weight"))))
    assert float(found.hidden[5]) == pytest.approx(ends + begins), "a tied output layer counts once"


def test_taylor_is_what_the_loss_would_miss():
    """Of one head, unit and place by the slopes of the loss of each batch; a head that nobody hears has none, however large it is."""
    module, labels = encoder(), torch.tensor([0, 2, -1, 1])
    with torch.no_grad():
        layer = module.model.bert.encoder.layer[0].attention
        layer.output.dense.weight[:, :4] = 0
        layer.self.value.weight[:4] *= 100
    had, batches = Sizes.of(BERT), [(TEXTS[:2], labels[:2]), (TEXTS[2:], labels[2:])]
    found = taylor(cut_bert, module, batches, had)
    assert float(found.heads[0][0]) == 0 < float(found.heads[0][1])
    assert magnitude(cut_bert, module, had).heads[0].argmax() == 0
    effects: dict[str, torch.Tensor] = {}
    for tokens, wanted in ((TEXTS[:2], labels[:2]), (TEXTS[3:], labels[3:])):  # the third has no label
        F.cross_entropy(module(tokens), wanted).backward()
        for name, weight in module.state_dict(keep_vars=True).items():
            effects[name] = effects.get(name, 0) + (weight * weight.grad).abs().detach() / 2
        module.zero_grad()
    for mine, theirs in zip(every(found), every(weighed(cut_bert, effects, had)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("options", [{}, {"tie_word_embeddings": False}, {"model_type": "electra", "embedding_size": 8}])
def test_of_a_masked_model_the_output_layer_s_bias_belongs_to_no_place(options):
    """Prevents: its numbers, one a token, are taken for places, or end the run once the teacher is trained."""
    torch.manual_seed(0)
    module = kinds.configure("models", "masked", {"config": BERT | options}).build((5,), 40).eval()
    had, labels = Sizes.of(BERT), TEXTS.where(torch.rand(TEXTS.shape) < 0.5, -1)
    slopes = taylor(cut_bert, module, [(TEXTS, labels)], had)
    assert all(one.isfinite().all() and (one > 0).all() for one in every(slopes))
    before = magnitude(cut_bert, module, had)
    with torch.no_grad():
        module.head.bias += 9
    for mine, theirs in zip(every(before), every(magnitude(cut_bert, module, had)), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("arch", ["pretrained", "masked"])
def test_tokens_that_the_student_does_not_have_do_not_count(arch):
    """Also where the embedding is the output layer's weight."""
    torch.manual_seed(0)
    module = kinds.configure("models", arch, {"config": BERT}).build((5,), 40).eval()
    had, tokens = Sizes.of(BERT), torch.tensor([3, 5, 9])
    before = magnitude(cut_bert, module, had, tokens)
    with torch.no_grad():
        module.model.bert.embeddings.word_embeddings.weight[[0, 4, 39]] *= 100
    assert torch.equal(magnitude(cut_bert, module, had, tokens).hidden, before.hidden)
    assert (magnitude(cut_bert, module, had).hidden > before.hidden).all()


@pytest.mark.parametrize("way", ["magnitude", "taylor", "activation"])
def test_the_teacher_is_left_as_it_is(way):
    module, had = encoder().requires_grad_(False), Sizes.of(BERT)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    ways = {"magnitude": lambda: magnitude(cut_bert, module, had),
            "taylor": lambda: taylor(cut_bert, module, [(TEXTS, torch.tensor([0, 1, 2, 0]))], had),
            "activation": lambda: activation(cut_bert, module, [(TEXTS, TEXTS != 3)], had)}  # fmt: skip
    ways[way]()
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items()) and not module.training
    assert not any(weight.requires_grad or weight.grad is not None for weight in module.parameters())


def test_of_running_text_the_loss_is_that_of_the_next_tokens():
    """A unit's score by hand, from the slopes of that loss."""
    module = decoder()
    model = module.sizes
    had = Sizes(model.layers, model.width, model.heads, model.groups, model.width // model.heads, model.units)
    labels = ROWS.roll(-1, 1)
    labels[:, -1] = -1
    found = taylor(cut_llama, module, [(ROWS, labels)], had)
    F.cross_entropy(module(ROWS)[:, :-1].flatten(0, 1), ROWS[:, 1:].flatten()).backward()
    net = module.model.layers[0].mlp
    effects = [(weight * weight.grad).detach() for weight in (net.gate_proj.weight, net.up_proj.weight, net.down_proj.weight)]
    for unit in range(had.inner):
        total = effects[0][unit].abs().sum() + effects[1][unit].abs().sum() + effects[2][:, unit].abs().sum()
        assert float(found.inner[0][unit]) == pytest.approx(float(total), rel=1e-4)
