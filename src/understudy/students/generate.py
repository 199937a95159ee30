"""Texts from a model that says what comes next: token by token, and with a small model that runs ahead of a large one.

    made = generate(model, [torch.tensor([2, 7, 4])], most=20, stop=[3])[0]      # made.tokens, made.log_probs
    made = speculative(target, draft, torch.tensor([2, 7, 4]), most=20)          # the target's own words, in fewer of its passes

Any module from (B, L) tokens to (B, L, V) logits serves; one with `step` (models/decoder.py, models/causal.py) keeps what it has read.
Shapes: B rows, L positions, n new ones, V tokens, T tokens made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.errors import RecipeError, four_parts


class Kept(Protocol):
    """What a model keeps of the tokens it has read. Only the one that `step` gave last, or a cut of it, may go on."""

    @property
    def length(self) -> int:
        """Tokens of each row that were read."""
        ...

    def cut(self, length: int) -> Kept:
        """The first `length` of them alone."""
        ...

    def select(self, rows: Tensor) -> Kept:
        """The rows with these numbers."""
        ...


class Stepping(Protocol):
    """A model that reads on."""

    def step(self, tokens: Tensor, cache: Any = None, *, last: int | None = None) -> tuple[Tensor, Any]:
        """(B, n) new tokens -> (B, last, V) logits behind the last of them (None: all n), and what to go on with."""
        ...


@dataclass(frozen=True)
class Generated:
    """tokens: (T,) int64, those behind the prompt, the stop token with them. log_probs: (T,) float32, what the model gives each of them in
    its place, in nats. drawn: (T,) float32, the same of the distribution that they were drawn from (zeros where greedy): importance weights
    divide by it. stopped: whether a stop token ended it, not the length."""

    tokens: Tensor
    log_probs: Tensor
    drawn: Tensor
    stopped: bool


@dataclass(frozen=True)
class Speculated:
    """tokens: (T,) int64. proposed, accepted: of each pass of the target, how many tokens the draft proposed and how many were right."""

    tokens: Tensor
    proposed: tuple[int, ...]
    accepted: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """What `Recompute` keeps: the tokens themselves, (B, L)."""

    tokens: Tensor

    @property
    def length(self) -> int:
        """Tokens of each row."""
        return self.tokens.shape[1]

    def cut(self, length: int) -> Read:
        """The first `length` of them alone."""
        return Read(self.tokens[:, :length])

    def select(self, rows: Tensor) -> Read:
        """The rows with these numbers."""
        return Read(self.tokens[rows])


class Recompute:
    """`step` for a module that keeps nothing: it reads everything again for every token. Slow, and right for any module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @torch.no_grad()
    def step(self, tokens: Tensor, cache: Read | None = None, *, last: int | None = None) -> tuple[Tensor, Read]:
        """As `Stepping.step`."""
        whole = tokens if cache is None else torch.cat([cache.tokens, tokens], 1)
        wanted = tokens.shape[1] if last is None else last
        return self.module(whole)[:, whole.shape[1] - wanted:], Read(whole)


def log_distribution(logits: Tensor, temperature: float, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """(B, V) logits -> (B, V) float32 log-probabilities that tokens are drawn from; -inf for those that can't be.

    temperature divides the logits; at 0 the largest has all (the first of equals). top_k: the k largest alone (Fan et al. 2018, arXiv
    1805.04833, section 5.1). top_p: of those the fewest, from the largest on, that hold this probability together (Holtzman et al. 2019,
    arXiv 1904.09751, equation 2). What is left is scaled to one.
    """
    if temperature == 0:
        return torch.full(logits.shape, -torch.inf, device=logits.device).scatter(1, logits.argmax(1, keepdim=True), 0.0)
    found = torch.log_softmax(logits.float() / temperature, 1)
    if top_k is None and top_p is None:
        return found
    ordered, order = found.sort(dim=1, descending=True, stable=True)
    kept = torch.arange(found.shape[1], device=found.device) < (top_k or found.shape[1])
    if top_p is not None:
        among = torch.softmax(ordered.masked_fill(~kept, -torch.inf), 1).double()
        kept = kept & (among.cumsum(1) - among < top_p)  # what lies before a token does not hold enough yet
    return torch.log_softmax(torch.full_like(found, -torch.inf).scatter(1, order, ordered.masked_fill(~kept, -torch.inf)), 1)


def generate(model: nn.Module, prompts: Sequence[Tensor], *, most: int, temperature: float = 0.0, top_k: int | None = None,
             top_p: float | None = None, stop: Collection[int] = (), seed: int = 0, keys: Sequence[int | str] | None = None,
             batch: int = 32, cached: bool = True) -> list[Generated]:
    """What the model says behind each prompt, in their order.

    Args:
        prompts: (L,) int64 each, at least one token; lengths may differ. most: tokens behind a prompt, at most.
        temperature, top_k, top_p: see `log_distribution`; temperature 0 is greedy. stop: tokens that end a text.
        seed, keys: the numbers that decide a text's draws are those of (seed, its key), by default its place in the list, whatever is
            generated beside it. In training the key has to hold the round too, or every round draws the same.
        batch: rows that go through the model together; prompts of like length, so that few wait.
        cached: False reads everything again for every token, also with a model that could keep it.

    In eval mode, without a gradient; the model's mode is as before afterwards. No padding is used: in a batch the shorter prompts begin to
    speak while the longer ones are still being read.

    Raises RecipeError for an empty prompt and for settings outside their range.
    """
    keys = range(len(prompts)) if keys is None else keys
    _check(most, temperature, top_k, top_p, batch)
    _check_prompts(prompts)
    if len(keys) != len(prompts):
        raise RecipeError(four_parts("generate needs a key for every prompt", got=f"{len(keys)} for {len(prompts)}", expected="as many",
                                     otherwise="Some texts would have no draws of their own", do="Give one key each, or none"))
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    found: dict[int, Generated] = {}
    with resting(model), torch.no_grad():
        for first in range(0, len(order), batch):
            these = order[first:first + batch]
            draws = None if temperature == 0 else torch.stack([
                torch.rand(most, dtype=torch.float64, generator=randomness.generator(seed, "generate", keys[at])) for at in these])
            made = _batch(stepping(model, cached), _device(model), [prompts[at] for at in these], most, draws,
                          (temperature, top_k, top_p), frozenset(stop))
            found |= zip(these, made, strict=True)
    return [found[at] for at in range(len(prompts))]


def _batch(model: Stepping, device: torch.device, prompts: Sequence[Tensor], most: int, draws: Tensor | None,
           shaping: tuple[float, int | None, float | None], stop: frozenset[int]) -> list[Generated]:
    """One batch. draws: (B, most) uniform numbers, None for greedy. All tensors are by row of the batch; `rows` are those still at work."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    width = int(lengths.max()) + most
    tokens = torch.zeros((len(prompts), width), dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
    log_probs, drawn = torch.zeros((2, len(prompts), width))
    ends, stopped = lengths + most, torch.zeros(len(prompts), dtype=torch.bool)
    rows, place = torch.arange(len(prompts)), int(lengths.min())
    logits, cache = model.step(tokens[:, :place].to(device), None, last=1)
    while True:
        speaking = (place >= lengths[rows]) & (place < ends[rows])
        own, said = rows[speaking], logits[speaking.to(device), -1].float()
        shaped = log_distribution(said, shaping[0], shaping[1], shaping[2])
        chosen = shaped.argmax(1) if draws is None else _pick(shaped, draws[own, place - lengths[own]].to(device))
        tokens[own, place] = chosen.cpu()
        log_probs[own, place] = torch.log_softmax(said, 1).gather(1, chosen[:, None])[:, 0].cpu()
        drawn[own, place] = shaped.gather(1, chosen[:, None])[:, 0].cpu()
        place += 1
        halted = own[torch.tensor([int(token) in stop for token in chosen], dtype=torch.bool)] if stop else own[:0]
        ends[halted], stopped[halted] = place, True
        working = ends[rows] > place
        if not bool(working.any()):
            break
        if 2 * int(working.sum()) <= len(rows):
            rows, cache = rows[working], cache.select(working.nonzero()[:, 0].to(device))
        logits, cache = model.step(tokens[rows, place - 1:place].to(device), cache, last=1)
    return [Generated(tokens[row, first:end], log_probs[row, first:end], drawn[row, first:end], bool(stopped[row]))
            for row, (first, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True))]


def _pick(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """(B, V) log-probabilities, (B,) numbers from [0, 1) -> (B,) the token into whose share of the line from 0 to 1 the number falls."""
    line = log_probs.double().exp().cumsum(1)
    found = torch.searchsorted(line, (uniform * line[:, -1])[:, None], right=True)[:, 0]  # right: a share of nothing is never met
    return found.clamp(max=log_probs.shape[1] - 1)


def greedy(model: nn.Module, prompt: Tensor, *, most: int, stop: Collection[int] = (), cached: bool = True) -> Tensor:
    """(T,) int64: the text of `generate` at temperature 0 behind one prompt, and nothing else: what `speculative` is timed against.

    Args and errors: as in `speculative`.
    """
    _check(most, 0.0, None, None, 1)
    _check_prompts([prompt])
    tokens, first, cache, reader = prompt.tolist(), len(prompt), None, stepping(model, cached)
    with resting(model), torch.no_grad():
        while len(tokens) - first < most and not (len(tokens) > first and tokens[-1] in stop):
            logits, cache = _read(reader, model, tokens, cache, 1)
            tokens.append(int(logits[0, -1].argmax()))
    return torch.tensor(tokens[first:], dtype=torch.int64)


def speculative(target: nn.Module, draft: nn.Module, prompt: Tensor, *, most: int, ahead: int = 4, stop: Collection[int] = (),
                cached: bool = True) -> Speculated:
    """The target's greedy text, checked several tokens at a time that the draft proposed.

    Leviathan, Kalman, Matias 2022 (arXiv 2211.17192), algorithm 1 at temperature 0: of the draft's `ahead` tokens those are kept that the
    target would have said itself, and one of the target's own follows. Every pass of the target so gives 1 to ahead + 1 tokens, and the
    tokens are those of `generate(target, ...)`, as long as the target's two largest logits differ by more than rounding.

    Args: prompt: (L,) int64. most: tokens behind it, at most. ahead: proposed a pass; fewer at the end, where no more would fit. stop,
    cached: as in `generate`.

    Works best when the draft is many times faster and agrees often (a student of this very target does); hurts where it rarely agrees: its
    work is then lost. Raises RecipeError for an empty prompt, settings outside their range, and models of different vocabularies.
    """
    _check(most, 0.0, None, None, 1)
    _check_prompts([prompt])
    if ahead < 1:
        raise RecipeError(four_parts("ahead must be positive", got=ahead, expected="1 or more", otherwise="The draft would do nothing",
                                     do="Use 4"))
    tokens, first = prompt.tolist(), len(prompt)
    proposed, accepted = [], []
    slow, fast = stepping(target, cached), stepping(draft, cached)
    slow_cache: Any = None
    fast_cache: Any = None
    with resting(target), resting(draft), torch.no_grad():
        sizes = [_classes(*pair, tokens[0]) for pair in ((slow, target), (fast, draft))]
        if sizes[0] != sizes[1]:
            raise RecipeError(four_parts(
                "target and draft have different vocabularies", got=f"{sizes[0]} and {sizes[1]} tokens", expected="one tokenizer",
                otherwise="A number would mean one word to the one and another to the other", do="Use a draft with the target's tokens"))
        while len(tokens) - first < most and not (len(tokens) > first and tokens[-1] in stop):
            count = min(ahead, first + most - len(tokens) - 1)
            guesses: list[int] = []
            for _ in range(count):
                logits, fast_cache = _read(fast, draft, tokens + guesses, fast_cache, 1)
                guesses.append(int(logits[0, -1].argmax()))
            logits, slow_cache = _read(slow, target, tokens + guesses, slow_cache, count + 1)
            said = logits[0].argmax(1).tolist()
            right = next((at for at, guess in enumerate(guesses) if guess != said[at]), count)
            new = said[: right + 1]
            tokens += new[: next((at + 1 for at, token in enumerate(new) if token in stop), len(new))]
            proposed.append(count)
            accepted.append(right)
            slow_cache = slow_cache.cut(min(slow_cache.length, len(tokens) - 1))  # the last token has not been read yet
            fast_cache = fast_cache and fast_cache.cut(min(fast_cache.length, len(tokens) - 1))
    return Speculated(torch.tensor(tokens[first:], dtype=torch.int64), tuple(proposed), tuple(accepted))


def _read(model: Stepping, module: nn.Module, tokens: list[int], cache: Any, last: int) -> tuple[Tensor, Any]:
    """Read the tokens that the cache does not hold yet."""
    new = tokens[cache.length if cache is not None else 0:]
    return model.step(torch.tensor([new], device=_device(module)), cache, last=last)


def _classes(model: Stepping, module: nn.Module, token: int) -> int:
    """V, without a pass where the output layer says it."""
    head = getattr(module, "head", None)
    return head.out_features if isinstance(head, nn.Linear) else _read(model, module, [token], None, 1)[0].shape[2]


def stepping(model: Any, cached: bool = True) -> Stepping:
    """The model itself where it has `step`, else `Recompute`."""
    return model if cached and hasattr(model, "step") else Recompute(model)


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """In eval mode inside the block; every part is in its own mode again afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _check(most: int, temperature: float, top_k: int | None, top_p: float | None, batch: int) -> None:
    for ok, what, got, expected, otherwise, do in (
            (most >= 1, "most must be positive", most, "1 or more", "No token would be made", "Say how many tokens"),
            (0 <= temperature < float("inf"), "temperature must not be negative", temperature, "0 or more",
             "The least likely tokens would be drawn", "Use 1, or 0 for the most likely token"),
            (top_k is None or top_k >= 1, "top_k must be positive", top_k, "1 or more", "No token could be drawn", "Leave it out"),
            (top_p is None or 0 < top_p <= 1, "top_p must be a probability", top_p, "0 < value <= 1", "No token could be drawn",
             "Use 0.95, or leave it out"),
            (batch >= 1, "batch must be positive", batch, "1 or more", "Nothing would be generated", "Use 32")):
        if not ok:
            raise RecipeError(four_parts(what, got=got, expected=expected, otherwise=otherwise, do=do))


def _check_prompts(prompts: Sequence[Tensor]) -> None:
    for at, prompt in enumerate(prompts):
        if prompt.ndim != 1 or not len(prompt):
            raise RecipeError(four_parts(
                f"prompt {at} is no row of tokens", got=f"shape {tuple(prompt.shape)}", expected="(L,), L at least 1",
                otherwise="The model would have nothing to go on", do="Begin with the start token"))
