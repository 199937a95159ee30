"""The shipped student as a draft for its teacher: what speculative decoding of test texts gives, and what it saves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from understudy.collate import Windows
from understudy.errors import Interrupted, RecipeError, four_parts
from understudy.events import Cancel, Event, OnEvent
from understudy.preprocess.passages import Passages
from understudy.report.facts import Draft, Drafts
from understudy.stages.prepare import Given, Prepared
from understudy.stages.taught import Taught
from understudy.stages.writing import refuse_other_tokens
from understudy.students.generate import Speculated, greedy, speculative
from understudy.training.rollout import beginnings

WARM = 2
"""Prompts that are written once before anything is timed."""


def refuse_draft(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """RecipeError where there is no text to run ahead in, or no teacher who reads the same tokens."""
    wanted = tree["draft"]
    if wanted is None:
        return
    if prepared.task != "language":
        raise RecipeError(four_parts(
            "a draft runs ahead in running text", got=f"data: {tree['data']['kind']}, {prepared.task}",
            expected="data: corpus, and models that say what comes next",
            otherwise="There would be no next token to propose", do="Remove draft"))
    refuse_other_tokens(tree, prepared, given, "draft")
    room, asked = prepared.shape[0], wanted["prompt"] + wanted["tokens"]
    if asked > room:
        raise RecipeError(four_parts(
            "draft asks for longer texts than rows are", got=f"prompt and tokens together {asked}", expected=f"at most {room} tokens",
            otherwise="Models would write where they have never read", do="Lower them, or raise data.passage"))


def measure(
    wanted: Mapping[str, Any], prepared: Prepared, taught: Taught, students: Mapping[str, nn.Module], hardware: str,
    on_event: OnEvent, cancel: Cancel,
) -> Drafts:  # fmt: skip
    """Each student as a draft, on the beginnings of the first test rows; the teacher alone and they take turns, prompt by prompt. Raises
    Interrupted between two of them."""
    (teacher,), rows = taught.modules, prepared.rows
    assert isinstance(prepared.preprocess, Passages) and isinstance(rows, Windows)
    most, stop, which = wanted["tokens"], (prepared.preprocess.end,), prepared.test[: wanted["prompts"]]
    prompts = beginnings(rows, which, wanted["prompt"])
    names = [prepared.names[row] for row in which.tolist()]

    def alone(prompt: Tensor) -> Tensor:
        return greedy(teacher, prompt, most=most, stop=stop)

    def ahead(draft: nn.Module) -> Callable[[Tensor], Speculated]:
        return lambda prompt: speculative(teacher, draft, prompt, most=most, ahead=wanted["ahead"], stop=stop)

    calls: dict[str, Callable[[Tensor], Any]] = {"teacher": alone, **{name: ahead(module.eval()) for name, module in students.items()}}
    for prompt in prompts[:WARM]:
        for call in calls.values():
            call(prompt)
    said: dict[str, list[Any]] = {name: [] for name in calls}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number, prompt in enumerate(prompts):
        for name in _turned(list(calls), number):
            begun = time.perf_counter()
            made = calls[name](prompt)
            seconds[name].append(time.perf_counter() - begun)
            said[name].append(made)
        on_event(Event("draft", "progress", "speculative decoding", (number + 1) / len(prompts)))
        if cancel():
            raise Interrupted("stopped; the students are kept, and the same command measures their drafts again")
    own = said.pop("teacher")
    found = {
        name: Draft(
            passes=sum(len(one.proposed) for one in said[name]),
            proposed=sum(sum(one.proposed) for one in said[name]),
            accepted=sum(sum(one.accepted) for one in said[name]),
            different={
                row: _apart(teacher, prompt, right, one.tokens)
                for row, prompt, one, right in zip(names, prompts, said[name], own, strict=True)
                if not torch.equal(one.tokens, right)
            },
            seconds=seconds[name],
        )
        for name in students
    }
    conditions = f"one text at a time, torch eager float32, {torch.get_num_threads()} thread(s), {hardware}"
    return Drafts(len(prompts), sum(len(one) for one in own), wanted["ahead"], seconds["teacher"], found, conditions)


def _turned(names: list[str], number: int) -> list[str]:
    """Whose turn is first goes round, so that nobody always finds the caches warm."""
    first = number % len(names)
    return names[first:] + names[:first]


@torch.inference_mode()
def _apart(teacher: nn.Module, prompt: Tensor, right: Tensor, made: Tensor) -> float:
    """What the teacher's two largest logits differ by where another token was made than its own."""
    both = min(len(right), len(made))
    at = next((place for place in range(both) if right[place] != made[place]), both)
    largest = teacher(torch.cat([prompt, right[:at]])[None])[0, -1].float().topk(2).values
    return float(largest[0] - largest[1])
