"""students/cut_bert.py: what is cut out of a teacher computes what the teacher computes without the rest."""

from __future__ import annotations

import copy

import pytest
import torch

from understudy import kinds
from understudy.compress.part_importance import activation
from understudy.errors import RecipeError
from understudy.students import cut_bert
from understudy.students.from_teacher import Cut, Sizes, cut

CONFIG = {"model_type": "bert", "vocab_size": 40, "pad_token_id": 3, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4,
          "intermediate_size": 24, "max_position_embeddings": 20}  # fmt: skip
HAD = Sizes.of(CONFIG)
TEXTS = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 3, 3], [39, 5, 3, 3, 3]])


def build(config, seed=0, classes=3):
    torch.manual_seed(seed)
    return kinds.configure("models", "pretrained", {"config": config}).build((5,), classes).eval()


def student(teacher, kept, **sizes):
    config = cut_bert.configured(CONFIG, kept.layers, **sizes)
    made = build(config, seed=9)
    made.load_state_dict(cut(cut_bert, teacher.state_dict(), kept, HAD))
    return made


@pytest.fixture
def teacher():
    return build(CONFIG)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_with_all_kept_it_is_the_teacher(teacher):
    everything = Cut((0, 1, 2, 3), torch.arange(16), (torch.arange(4),) * 4, (torch.arange(24),) * 4, torch.arange(40))
    found = cut(cut_bert, teacher.state_dict(), everything, HAD)
    assert found.keys() == teacher.state_dict().keys()
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in found.items())


@pytest.mark.parametrize("layers", [(0, 3), (1,), (2, 0)])
def test_layers_are_the_teacher_s_without_the_others(teacher, layers):
    shorter = copy.deepcopy(teacher)
    shorter.model.bert.encoder.layer = torch.nn.ModuleList(teacher.model.bert.encoder.layer[at] for at in layers)
    shorter.model.config.num_hidden_layers = len(layers)
    close(student(teacher, Cut(layers))(TEXTS), shorter(TEXTS))


def test_heads_and_units_are_the_teacher_s_with_the_others_silent(teacher):
    heads, inner = (torch.tensor([1, 2]),) * 4, (torch.tensor([0, 5, 23]),) * 4
    silent = copy.deepcopy(teacher)
    with torch.no_grad():
        for layer in silent.model.bert.encoder.layer:
            layer.output.dense.weight[:, [unit for unit in range(24) if unit not in (0, 5, 23)]] = 0
            layer.attention.output.dense.weight[:, :4] = 0
            layer.attention.output.dense.weight[:, 12:] = 0
    state = cut(cut_bert, teacher.state_dict(), Cut((0, 1, 2, 3), None, heads, inner), HAD)
    for at, layer in enumerate(silent.model.bert.encoder.layer):
        x = torch.randn(1, 5, 16)
        value = torch.nn.functional.linear(x, state[f"bert.encoder.layer.{at}.intermediate.dense.weight"],
                                           state[f"bert.encoder.layer.{at}.intermediate.dense.bias"])  # fmt: skip
        small = torch.nn.functional.gelu(value) @ state[f"bert.encoder.layer.{at}.output.dense.weight"].T
        close(small, layer.intermediate(x) @ layer.output.dense.weight.T)
        whole = layer.attention.self.value(x) @ layer.attention.output.dense.weight.T
        read = torch.nn.functional.linear(x, state[f"bert.encoder.layer.{at}.attention.self.value.weight"],
                                          state[f"bert.encoder.layer.{at}.attention.self.value.bias"])  # fmt: skip
        close(read @ state[f"bert.encoder.layer.{at}.attention.output.dense.weight"].T, whole)


def test_fewer_tokens_are_the_same_text_by_other_numbers(teacher):
    tokens = torch.tensor([3, 5, 6, 7, 8, 9, 11, 12, 13, 39])
    smaller = student(teacher, Cut((0, 1, 2, 3), tokens=tokens), vocabulary=10, pad=0)
    numbers = torch.tensor([tokens.tolist().index(token) for token in TEXTS.flatten().tolist()]).reshape(TEXTS.shape)
    close(smaller(numbers), teacher(TEXTS))


def test_a_narrower_student_has_the_chosen_places_everywhere(teacher):
    hidden = torch.tensor([0, 2, 3, 5, 8, 9, 10, 15])
    kept = Cut((0, 2), hidden, (torch.tensor([0, 3]),) * 2, (torch.tensor([1, 4, 7, 8]),) * 2)
    made = student(teacher, kept, width=8, inner=4)
    assert made(TEXTS).shape == (3, 3) and made.model.config.hidden_size == 8 and made.model.config.num_attention_heads == 2
    own, theirs = made.state_dict(), teacher.state_dict()
    assert torch.equal(own["bert.embeddings.word_embeddings.weight"], theirs["bert.embeddings.word_embeddings.weight"][:, hidden])
    assert torch.equal(own["bert.encoder.layer.1.attention.self.query.weight"],
                       theirs["bert.encoder.layer.2.attention.self.query.weight"][[0, 1, 2, 3, 12, 13, 14, 15]][:, hidden])  # fmt: skip
    assert torch.equal(own["bert.pooler.dense.weight"], theirs["bert.pooler.dense.weight"][hidden][:, hidden])
    assert torch.equal(own["classifier.weight"], theirs["classifier.weight"][:, hidden])
    assert torch.equal(own["classifier.bias"], theirs["classifier.bias"])


def test_what_says_nothing_is_the_least_important(teacher):
    """A head that writes nothing, a unit and a place that are always 0, are the first to go; padding has no say."""
    with torch.no_grad():
        layer = teacher.model.bert.encoder.layer[1]
        layer.attention.self.value.weight[4:8] = 0
        layer.attention.self.value.bias[4:8] = 0
        layer.intermediate.dense.weight[6] = 0
        layer.intermediate.dense.bias[6] = 0
        for part in teacher.modules():
            if isinstance(part, torch.nn.LayerNorm):
                part.weight[9] = part.bias[9] = 0
    found = activation(cut_bert, teacher, [(TEXTS, TEXTS != 3)], HAD)
    assert found.hidden.argmin() == 9 and found.heads[1].argmin() == 1 and found.inner[1].argmin() == 6
    longer = torch.nn.functional.pad(TEXTS, (0, 6), value=3)
    again = activation(cut_bert, teacher, [(longer, longer != 3)], HAD)
    for mine, theirs in zip([found.hidden, *found.heads, *found.inner], [again.hidden, *again.heads, *again.inner], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sizes", "word"), [
    ({"layers": (0, 7)}, "layers"), ({"layers": (0, 0)}, "layers"), ({"layers": (0,), "width": 17}, "width is larger"),
    ({"layers": (0,), "width": 10}, "multiple of 4"),
    ({"layers": (0,), "width": 8, "heads": 1}, "do not fill"), ({"layers": (0,), "inner": 99}, "inner is larger")])
def test_sizes_that_the_teacher_does_not_have_are_refused(sizes, word):
    with pytest.raises(RecipeError, match=word):
        cut_bert.configured(CONFIG, **sizes)
    with pytest.raises(RecipeError, match="can't cut"):
        cut_bert.configured(CONFIG | {"model_type": "gpt2"}, (0,))


def test_an_embedding_that_is_not_as_wide_as_the_layers_is_cut_with_all_widths_alone():
    """As small ELECTRA has: places of the embedding are not those of the residual stream."""
    small = CONFIG | {"model_type": "electra", "embedding_size": 8}
    assert cut_bert.configured(small, (0, 3))["num_hidden_layers"] == 2
    for sizes in ({"width": 8}, {"inner": 12}):
        with pytest.raises(RecipeError, match="the embedding is not as wide as the layers: got 8 numbers a token, layers of 16"):
            cut_bert.configured(small, (0, 3), **sizes)


def test_a_masked_model_s_layers_widths_and_head_are_cut_too():
    """With all kept it is the teacher; with half of the width the head still has a row for every token, and its own weights."""
    torch.manual_seed(0)
    teacher = kinds.configure("models", "masked", {"config": CONFIG}).build((5,), 40).eval()
    whole = cut(cut_bert, teacher.state_dict(), Cut((0, 1, 2, 3), torch.arange(16), (torch.arange(4),) * 4, (torch.arange(24),) * 4), HAD)
    assert whole.keys() == teacher.state_dict().keys()
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in whole.items())
    places, heads = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11]), (torch.tensor([0, 2]),) * 2
    config = cut_bert.configured(CONFIG, (1, 3), width=8)
    made = kinds.configure("models", "masked", {"config": config}).build((5,), 40).eval()
    made.load_state_dict(cut(cut_bert, teacher.state_dict(), Cut((1, 3), places, heads), HAD))
    assert made(TEXTS).shape == (3, 5, 40)
    there = teacher.model.cls.predictions.transform.dense
    assert torch.equal(made.model.cls.predictions.transform.dense.weight, there.weight[places][:, places])
    assert torch.equal(made.head.bias, teacher.head.bias) and torch.equal(made.head.weight, teacher.head.weight[:, places])
