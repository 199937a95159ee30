"""students/generate.py: what is drawn, against its distribution; with a cache, without one, and checked by the model's own forward."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from understudy import kinds
from understudy.errors import RecipeError
from understudy.students.generate import Generated, generate, greedy, log_distribution, speculative

V, START, STOP = 23, 2, 3


def decoder(seed=0, scale=0.3, **options):
    torch.manual_seed(seed)
    options = {"width": 16, "layers": 2, "heads": 2, "vocabulary": V, "pad": 1, "start": START} | options
    module = kinds.configure("models", "decoder", options).build((16,), V).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module


class Chain(nn.Module):
    """No cache and no memory: the logits behind a token are its row of a table."""

    def __init__(self, table):
        super().__init__()
        self.table = nn.Parameter(table)
        self.read = 0

    def forward(self, x):
        self.read += 1
        return self.table[x]


def prompts(count=9, seed=0, longest=7):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.cat([torch.tensor([START]), torch.randint(4, V, (length - 1,), generator=generator)]) for length in lengths]


def same(first, second, close=1e-5):
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.tokens, other.tokens) and one.stopped == other.stopped
        torch.testing.assert_close(one.log_probs, other.log_probs, rtol=0, atol=close)
        torch.testing.assert_close(one.drawn, other.drawn, rtol=0, atol=close)


def by_hand(module, prompt, most, stop=()):
    """Greedy, one text, one token at a time through the whole forward."""
    tokens, log_probs = prompt.tolist(), []
    while len(log_probs) < most and not (log_probs and tokens[-1] in stop):
        row = torch.log_softmax(module(torch.tensor([tokens]))[0, -1], 0)
        tokens.append(int(row.argmax()))
        log_probs.append(row.max().detach())
    return torch.tensor(tokens[len(prompt):]), torch.stack(log_probs)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("batch", [1, 4, 32])
def test_greedy_is_the_loop_by_hand(cached, batch):
    """Prompts of different lengths share a batch, and some of the texts stop early."""
    module, given = decoder(), prompts(12)
    usual = generate(module, given, most=9)
    stop = {int(one.tokens[at]) for one, at in zip(usual[:3], (0, 3, 6), strict=True)}
    made = generate(module, given, most=9, stop=stop, batch=batch, cached=cached)
    for one, prompt in zip(made, given, strict=True):
        tokens, log_probs = by_hand(module, prompt, 9, stop)
        assert torch.equal(one.tokens, tokens) and one.stopped == (int(tokens[-1]) in stop)
        torch.testing.assert_close(one.log_probs, log_probs, rtol=0, atol=1e-5)
        assert one.drawn.tolist() == [0.0] * len(tokens)
    assert len({len(one.tokens) for one in made}) > 1 and {one.stopped for one in made} == {True, False}


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.7, "temperature": 1.5}])
def test_draws_do_not_depend_on_the_batch_or_the_cache(options):
    """Prevents: a run that is resumed with another batch size learns from other texts."""
    module, given = decoder(), prompts()
    options = {"most": 8, "temperature": 1.0, "seed": 3, "stop": {STOP}} | options
    made = generate(module, given, **options)
    same(made, generate(module, given, batch=2, **options))
    same(made, generate(module, given, cached=False, batch=5, **options))
    same([made[4]], generate(module, [given[4]], keys=[4], **options))
    order = [3, 1, 0]
    same([made[at] for at in order], generate(module, [given[at] for at in order], keys=order, **options))


def test_another_seed_or_key_draws_another_text():
    module, given = decoder(), [torch.tensor([START, 5])] * 6
    made = generate(module, given, most=8, temperature=1.0)
    assert len({tuple(one.tokens.tolist()) for one in made}) > 3
    other = generate(module, given, most=8, temperature=1.0, seed=1)
    assert any(not torch.equal(one.tokens, two.tokens) for one, two in zip(made, other, strict=True))
    named = generate(module, given[:2], most=8, temperature=1.0, keys=["train/1", "train/1"])
    assert torch.equal(named[0].tokens, named[1].tokens)


def test_log_probs_are_those_of_a_forward_over_the_text():
    """What an importance weight is made of: the model's probability, and that of the distribution which was drawn from."""
    module, given = decoder(), prompts()
    settings = {"temperature": 0.7, "top_k": 6, "top_p": 0.9}
    for one, prompt in zip(generate(module, given, most=10, stop={STOP}, **settings), given, strict=True):
        logits = module(torch.cat([prompt, one.tokens])[None])[0, len(prompt) - 1:-1]
        expected = torch.log_softmax(logits, 1).gather(1, one.tokens[:, None])[:, 0]
        torch.testing.assert_close(one.log_probs, expected, rtol=0, atol=1e-5)
        drawn = log_distribution(logits, **settings).gather(1, one.tokens[:, None])[:, 0]
        torch.testing.assert_close(one.drawn, drawn, rtol=0, atol=1e-4)
        assert bool(torch.isfinite(one.drawn).all())


def test_tokens_come_as_often_as_their_probability_says():
    """4,000 draws: each frequency within four standard errors."""
    table = torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0]).log().expand(5, 5)
    made = generate(Chain(table.clone()), [torch.tensor([0])] * 400, most=10, temperature=1.0, batch=400)
    counts = torch.cat([one.tokens for one in made]).bincount(minlength=5) / 4000
    for count, share in zip(counts.tolist(), (0.5, 0.2, 0.2, 0.1, 0.0), strict=True):
        assert abs(count - share) <= 4 * math.sqrt(share * (1 - share) / 4000)


def test_the_distribution_by_hand():
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()
    for options, expected in [
            ({"temperature": 1.0}, [0.1, 0.4, 0.2, 0.3]), ({"temperature": 0.0}, [0, 1, 0, 0]),
            ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]), ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
            ({"temperature": 1.0, "top_p": 0.65}, [0, 4 / 7, 0, 3 / 7]), ({"temperature": 1.0, "top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
            ({"temperature": 1.0, "top_p": 0.01}, [0, 1, 0, 0]), ({"temperature": 1.0, "top_p": 1.0}, [0.1, 0.4, 0.2, 0.3]),
            ({"temperature": 1.0, "top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7]),
            ({"temperature": 1.0, "top_k": 9}, [0.1, 0.4, 0.2, 0.3])]:
        torch.testing.assert_close(log_distribution(logits, **options).exp(), torch.tensor([expected], dtype=torch.float32))


def test_of_equals_only_as_many_as_asked_for_are_kept():
    kept = log_distribution(torch.zeros(1, 6), 1.0, top_k=2).exp()
    assert kept.tolist()[0] == pytest.approx([0.5, 0.5, 0, 0, 0, 0])


def test_modes_and_randomness_are_left_alone():
    module = decoder(dropout=0.5).train()
    module.model.layers[0].eval()
    modes, state = [part.training for part in module.modules()], torch.get_rng_state()
    first, again = (generate(module, prompts(3), most=5, temperature=1.0) for _ in range(2))
    same(first, again, 0)
    assert [part.training for part in module.modules()] == modes and torch.equal(state, torch.get_rng_state())
    speculative(module, module, prompts(1)[0], most=5)
    assert [part.training for part in module.modules()] == modes and not first[0].log_probs.requires_grad


def test_a_list_without_prompts_gives_none():
    assert generate(decoder(), [], most=3) == []


def test_a_text_that_stops_at_once_holds_the_stop_token_alone():
    table = torch.full((V, V), 0.0)
    table[:, STOP] = 5.0
    made = generate(Chain(table), [torch.tensor([START])], most=4, stop=[STOP])
    assert isinstance(made[0], Generated) and made[0].tokens.tolist() == [STOP] and made[0].stopped


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("ahead", [1, 3, 4])
def test_speculation_says_what_the_target_says_alone(ahead, cached):
    """Over random targets, and drafts that are right always, often, rarely: as many tokens, and the same."""
    rates = {}
    for seed in range(4):
        target = decoder(seed)
        near, given = decoder(seed), prompts(2, seed)
        alone = [one.tokens for one in generate(target, given, most=17)]
        with torch.no_grad():
            for parameter in near.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.03)
        for name, draft in (("same", target), ("near", near), ("other", decoder(seed + 100, width=8, layers=1))):
            for prompt, expected in zip(given, alone, strict=True):
                made = speculative(target, draft, prompt, most=17, ahead=ahead, cached=cached)
                assert torch.equal(made.tokens, expected) and sum(made.accepted) + len(made.accepted) == 17
                assert all(0 <= right <= count <= ahead for right, count in zip(made.accepted, made.proposed, strict=True))
                rates.setdefault(name, []).append(sum(made.accepted) / sum(made.proposed))
    assert set(rates["same"]) == {1.0}
    means = {name: sum(values) / len(values) for name, values in rates.items()}
    assert means["other"] < 0.3 < means["near"] < 1.0


@pytest.mark.parametrize("cached", [True, False])
def test_greedy_says_what_generate_says_at_temperature_0(cached):
    """It is what speculation is timed against, so it takes one pass a token and has no more to do."""
    for seed in range(3):
        module = decoder(seed)
        for prompt in prompts(4, seed):
            whole = generate(module, [prompt], most=9)[0].tokens
            stop = {int(whole[4])}
            assert torch.equal(greedy(module, prompt, most=9, cached=cached), whole)
            halted = generate(module, [prompt], most=9, stop=stop)[0].tokens
            assert torch.equal(greedy(module, prompt, most=9, stop=stop, cached=cached), halted)
    chain = Chain(torch.zeros(V, V))
    greedy(chain, torch.tensor([START]), most=6)
    assert chain.read == 6


def test_a_perfect_draft_saves_all_passes_but_one_in_five():
    target = decoder()
    made = speculative(target, target, torch.tensor([START, 5]), most=15, ahead=4)
    assert made.proposed == made.accepted == (4, 4, 4) and len(made.tokens) == 15


def test_a_draft_that_is_never_right_costs_a_pass_a_token():
    table = torch.zeros(V, V)
    right, wrong = table.clone(), table.clone()
    right[:, 7], wrong[:, 8] = 1.0, 1.0
    target, draft = Chain(right), Chain(wrong)
    made = speculative(target, draft, torch.tensor([START]), most=6, ahead=4)
    assert made.tokens.tolist() == [7] * 6 and made.accepted == (0,) * 6 and made.proposed == (4, 4, 3, 2, 1, 0)
    assert target.read == 6 + 1, "one pass to see its vocabulary"


def test_speculation_stops_where_the_target_stops():
    """Also where the stop token is among the tokens that were accepted: what the draft said behind it is no text."""
    stopped = 0
    for seed in range(4):
        target = decoder(seed)
        for prompt in prompts(4, seed):
            tokens = generate(target, [prompt], most=14)[0].tokens
            stop = {int(tokens[5])}
            expected = generate(target, [prompt], most=14, stop=stop)[0]
            for draft in (target, decoder(seed + 9)):
                made = speculative(target, draft, prompt, most=14, stop=stop)
                assert torch.equal(made.tokens, expected.tokens)
            stopped += expected.stopped
    assert stopped == 16


@pytest.mark.parametrize(("options", "words"), [
    ({"most": 0}, "most"), ({"temperature": -1.0}, "temperature"), ({"temperature": math.inf}, "temperature"), ({"top_k": 0}, "top_k"),
    ({"top_p": 0.0}, "top_p"), ({"top_p": 1.5}, "top_p"), ({"batch": 0}, "batch"), ({"keys": [1, 2]}, "key")])
def test_settings_that_mean_nothing_are_refused(options, words):
    with pytest.raises(RecipeError, match=words):
        generate(decoder(), [torch.tensor([START])], **{"most": 3} | options)


def test_prompts_and_pairs_that_can_not_be_read_are_refused():
    module = decoder()
    for bad in (torch.tensor([], dtype=torch.int64), torch.tensor([[START]])):
        with pytest.raises(RecipeError, match="no row of tokens"):
            generate(module, [bad], most=2)
        with pytest.raises(RecipeError, match="no row of tokens"):
            speculative(module, module, bad, most=2)
    with pytest.raises(RecipeError, match="vocabularies"):
        speculative(module, Chain(torch.zeros(V + 1, V + 1)), torch.tensor([START]), most=2)
    with pytest.raises(RecipeError, match="ahead"):
        speculative(module, module, torch.tensor([START]), most=2, ahead=0)
