"""models/decoder.py against its formulas written out, its own fast and slow paths, and transformers' LlamaForCausalLM."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.errors import RecipeError
from understudy.models.decoder import documents, rotated, visible
from understudy.students import weights

START = 2
SIZES = {"width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "vocabulary": 30, "pad": 1, "start": START}
SHAPES = [{}, {"kv_heads": None}, {"kv_heads": 1, "tied": False}, {"layers": 3, "inner": 20, "rope_base": 50.0}]


def build(length=16, seed=0, **options):
    torch.manual_seed(seed)
    options = SIZES | options
    module = kinds.configure("models", "decoder", options).build((length,), options["vocabulary"]).eval()
    with torch.no_grad():
        for parameter in module.parameters():  # far from the small start, so that attention is not uniform
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def packed(rows, length, seed=0, every=5):
    """Rows of documents that begin with START at random places."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 30, (rows, length), generator=generator)
    tokens[torch.randint(0, every, (rows, length), generator=generator) == 0] = START
    return tokens


def by_hand(module, tokens):
    """(L, V) in float64: one document, place by place and head by head, from the papers' formulas."""
    m, names = module.sizes, {name: value.double() for name, value in module.state_dict().items()}
    size = m.width // m.heads

    def norm(x, name):
        return x / (x.square().mean() + 1e-6).sqrt() * names[name]

    def turned(x, place):
        out = x.clone()
        for i in range(size // 2):
            angle = place * m.rope_base ** (-2 * i / size)
            out[i] = x[i] * math.cos(angle) - x[i + size // 2] * math.sin(angle)
            out[i + size // 2] = x[i] * math.sin(angle) + x[i + size // 2] * math.cos(angle)
        return out

    stream = [names["model.embed_tokens.weight"][token] for token in tokens.tolist()]
    for layer in range(m.layers):
        at = f"model.layers.{layer}."
        seen = [norm(x, at + "input_layernorm.weight") for x in stream]
        q, k, v = ([(names[f"{at}self_attn.{part}_proj.weight"] @ x).split(size) for x in seen] for part in "qkv")
        for place in range(len(stream)):
            heads = []
            for head in range(m.heads):
                group = head // (m.heads // m.groups)
                scores = torch.stack([turned(q[place][head], place) @ turned(k[j][group], j) for j in range(place + 1)]) / size**0.5
                heads.append(sum(w * v[j][group] for j, w in enumerate(scores.softmax(0))))
            stream[place] = stream[place] + names[at + "self_attn.o_proj.weight"] @ torch.cat(heads)
        for place, x in enumerate(stream):
            h = norm(x, at + "post_attention_layernorm.weight")
            gate, up = names[at + "mlp.gate_proj.weight"] @ h, names[at + "mlp.up_proj.weight"] @ h
            stream[place] = x + names[at + "mlp.down_proj.weight"] @ (gate * gate.sigmoid() * up)
    return torch.stack([names["lm_head.weight"] @ norm(x, "model.norm.weight") for x in stream])


@pytest.mark.parametrize("options", SHAPES)
def test_it_is_the_formula(options):
    module = build(**options).double()
    tokens = torch.tensor([START, 7, 4, 29, 4, 11, 3])
    torch.testing.assert_close(module(tokens[None])[0], by_hand(module, tokens), rtol=1e-7, atol=1e-7)


def test_every_document_of_a_packed_row_reads_as_if_alone():
    """Prevents: a text is predicted from the one that happens to stand before it. Positions go on counting and need not restart."""
    module = build().double()
    tokens = packed(4, 16)
    together = module(tokens)
    several = 0
    for row, numbers in zip(range(4), documents(tokens, START), strict=True):
        for number in numbers.unique():
            here = numbers == number
            alone = module(tokens[row, here][None])[0]
            torch.testing.assert_close(together[row, here], alone, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(alone, by_hand(module, tokens[row, here]), rtol=1e-7, atol=1e-7)
            several += bool(number > numbers[0])
    assert several > 4


def test_without_a_start_token_a_row_is_one_document():
    tokens = packed(2, 12)
    assert not torch.allclose(build(start=None)(tokens), build()(tokens))


def test_only_distances_count():
    """Rotary positions: the same shift of all positions changes nothing, so that a document may stand anywhere in its row."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 6, 8, dtype=torch.float64, generator=generator)

    def scores(first):
        angles = torch.outer(torch.arange(first, first + 6).double(), 100 ** -(torch.arange(0, 8, 2).double() / 8))
        turn = torch.cat([angles.cos()] * 2, 1), torch.cat([angles.sin()] * 2, 1)
        return rotated(query, *turn) @ rotated(key, *turn).transpose(2, 3)

    torch.testing.assert_close(scores(0), scores(1234), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(scores(0), query @ key.transpose(2, 3))


def test_the_path_without_a_mask_equals_the_one_with_it():
    module = build().double()
    tokens = packed(3, 16)
    tokens[tokens == START] = 5
    tokens[1, 0] = START
    slow = module._read(tokens, visible(documents(tokens, START), 16), None)
    torch.testing.assert_close(module.features(tokens), slow, rtol=1e-10, atol=1e-10)


def test_the_mask_by_hand():
    segments = torch.tensor([[0, 0, 1, 1, 2]])
    expected = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert visible(segments, 5)[0, 0].int().tolist() == expected
    assert visible(segments, 2)[0, 0].int().tolist() == expected[3:]


def test_padding_behind_a_text_needs_no_mask():
    module = build().double()
    tokens = packed(2, 9)
    padded = torch.cat([tokens, torch.full((2, 7), SIZES["pad"])], 1)
    torch.testing.assert_close(module(padded)[:, :9], module(tokens), rtol=1e-10, atol=1e-10)


def test_nothing_looks_ahead():
    module = build().double()
    tokens = packed(2, 12)
    other = tokens.clone()
    other[:, 8:] = (other[:, 8:] + 7) % 30
    torch.testing.assert_close(module(tokens)[:, :8], module(other)[:, :8], rtol=1e-10, atol=1e-10)
    assert not torch.allclose(module(tokens)[:, 8:], module(other)[:, 8:])


@pytest.mark.parametrize("options", SHAPES)
@pytest.mark.parametrize("parts", [[1] * 14, [14], [5, 1, 1, 4, 3], [1, 13]])
@pytest.mark.parametrize("every", [4, 1000])
def test_step_by_step_equals_the_whole(options, parts, every):
    """With one document a row, and with several."""
    module = build(**options)
    tokens = packed(3, 14, every=every)
    cache, logits = None, []
    for part in tokens.split(parts, 1):
        found, cache = module.step(part, cache)
        logits.append(found)
    torch.testing.assert_close(torch.cat(logits, 1), module(tokens), rtol=1e-5, atol=1e-5)
    assert cache.length == 14 and not logits[0].requires_grad


def test_step_gives_only_the_last_places_that_are_asked_for():
    module = build()
    tokens = packed(2, 10)
    whole = module.step(tokens)[0]
    for last in (0, 1, 4, 10):
        torch.testing.assert_close(module.step(tokens, last=last)[0], whole[:, 10 - last:])


@pytest.mark.parametrize("every", [4, 1000])
def test_a_cache_is_cut_back(every):
    """A draft that was refused must leave nothing behind, also where it began a document."""
    module = build()
    tokens, wrong = packed(3, 12, every=every), packed(3, 5, seed=1)
    _, cache = module.step(tokens[:, :6])
    _, cache = module.step(wrong, cache)
    cache = cache.cut(6)
    assert cache.length == 6
    logits, cache = module.step(tokens[:, 6:], cache)
    torch.testing.assert_close(logits, module(tokens)[:, 6:], rtol=1e-5, atol=1e-5)


def test_rows_of_a_cache_are_selected():
    module = build()
    tokens, rows = packed(4, 10), torch.tensor([3, 1])
    _, cache = module.step(tokens[:, :7])
    logits, _ = module.step(tokens[rows, 7:], cache.select(rows))
    torch.testing.assert_close(logits, module(tokens)[rows, 7:], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [*SHAPES, {"start": None, "pad": 0}])
def test_transformers_reads_what_is_written(options, tmp_path):
    """The one who gets the folder has no understudy: config.json and the weights' names must be enough."""
    transformers = pytest.importorskip("transformers")
    module = build(**options)
    written = module.published(["a"])
    ours = {"schema": 1, "model": {"arch": "decoder"}, "shape": [16], "classes": ["a"], "weights": {"bytes": 1}, "extra": {}}
    (tmp_path / "config.json").write_text(json.dumps(written | ours))
    (tmp_path / weights.FILE).write_bytes(weights.serialise(module))
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, local_files_only=True, output_loading_info=True)
    assert type(theirs).__name__ == "LlamaForCausalLM" and not info["missing_keys"] and not info["unexpected_keys"]
    tokens = torch.randint(3, 30, (3, 16), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = START
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(input_ids=tokens).logits, module(tokens), rtol=1e-5, atol=1e-5)
    assert sorted(theirs.state_dict()) == sorted(module.state_dict())
    assert theirs.config.tie_word_embeddings == module.sizes.tied and theirs.config.max_position_embeddings == 16


def test_a_tied_head_stays_tied():
    module = build()
    twin = copy.deepcopy(module).double()
    assert twin.head.weight is twin.model.embed_tokens.weight and twin.head.weight is not module.head.weight
    assert len(list(module.parameters())) == len(list(build(tied=False).parameters())) - 1
    untied = build(tied=False)
    assert untied.head.weight is not untied.model.embed_tokens.weight


def test_the_weights_start_small_and_the_layers_that_add_smaller():
    torch.manual_seed(0)
    module = kinds.configure("models", "decoder", SIZES | {"width": 96, "layers": 8, "vocabulary": 500, "tied": False}).build((8,), 500)
    for name, value in module.named_parameters():
        if value.ndim == 1:
            assert bool((value == 1).all())
        else:
            expected = 0.02 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert float(value.detach().std()) == pytest.approx(expected, rel=0.05), name
    weight = module.model.embed_tokens.weight.detach()
    assert bool((weight[SIZES["pad"]] == 0).all()) and bool((weight[START] != 0).any())


def test_a_start_token_that_is_the_padding_too_learns():
    """GPT-2 has one token for both: an embedding that leaves out the padding would never learn how a text begins."""
    module = build(pad=START, tied=False).train()
    module(packed(2, 8)).logsumexp(2).sum().backward()
    assert bool((module.model.embed_tokens.weight.grad[START] != 0).any())
    module = build(tied=False).train()
    module(torch.tensor([[START, 5, SIZES["pad"]]])).logsumexp(2).sum().backward()
    assert bool((module.model.embed_tokens.weight.grad[SIZES["pad"]] == 0).all())


def test_one_step_of_gradient_descent_lowers_the_loss():
    module = build().train()
    tokens = packed(4, 16)
    losses = []
    for _ in range(2):
        loss = nn.functional.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        module.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.01 * parameter.grad
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0]


@pytest.mark.parametrize(("options", "classes", "words"), [
    ({"heads": 5}, 30, "even width"), ({"width": 12, "heads": 12, "kv_heads": 12}, 30, "even width"), ({"kv_heads": 3}, 30, "divide"),
    ({"layers": 0}, 30, "positive"), ({"dropout": 1.0}, 30, "dropout"), ({"rope_base": 1.0}, 30, "rope_base"), ({}, 5, "next"),
    ({"start": 30}, 30, "start"), ({"pad": 30}, 30, "pad"), ({"inner": 0}, 30, "positive")])  # fmt: skip
def test_what_can_not_be_built_is_refused(options, classes, words):
    with pytest.raises(RecipeError, match=words):
        kinds.configure("models", "decoder", SIZES | options).build((8,), classes)


def test_it_is_built_without_memory_behind_it_and_compared(tmp_path):
    """What loading a student does before it believes a config.json."""
    module = build()
    with torch.device("meta"):
        hollow = kinds.configure("models", "decoder", SIZES).build((16,), 30)
    weights.check_fit(hollow, dict(module.state_dict()), tmp_path)
    assert hollow.head.weight.is_meta


@pytest.mark.slow
def test_one_graph_serves_rows_of_one_document_and_of_several():
    """Prevents: an export keeps the path that its example happened to take."""
    module = build()
    sizes = {0: torch.export.Dim("rows", min=2), 1: torch.export.Dim("length", min=2)}
    graph = torch.export.export(module, (packed(3, 12, every=1000),), dynamic_shapes={"x": sizes}).module()
    for tokens in (packed(2, 9), packed(4, 14, every=1000)):
        torch.testing.assert_close(graph(tokens), module(tokens), rtol=1e-5, atol=1e-5)
