"""What the teacher writes behind the beginnings of the training rows, once: sequence-level distillation (Kim, Rush 2016, arXiv 1606.07947,
section 3.2; deviation: one draw or the greedy text of each row, where they take the best of a beam)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from understudy import atomic, disk, kinds
from understudy.cache import Cache
from understudy.collate import Continued, Windows
from understudy.errors import Interrupted, RecipeError, four_parts
from understudy.events import Cancel, Event, OnEvent
from understudy.preprocess.passages import NOTHING, Passages
from understudy.run_folder import sweep
from understudy.stages.common import digest
from understudy.stages.prepare import Given, Prepared
from understudy.stages.taught import Taught
from understudy.training.rollout import Writing, beginnings, continuations

VERSION = 1
PART = 64
"""Rows of a file: what a kill can cost."""


def writing_of(options: Mapping[str, Any], prepared: Prepared) -> Writing:
    """How rows are continued, of `data.transfer.rollouts`."""
    assert isinstance(prepared.preprocess, Passages)
    return Writing(prompt=options["prompt"], tokens=options["tokens"], temperature=options["temperature"], stop=prepared.preprocess.end)


def write(tree: Mapping[str, Any], prepared: Prepared, taught: Taught, cache: Cache, on_event: OnEvent, cancel: Cancel) -> Prepared:
    """The data with what the teacher wrote behind the beginning of each training row; what lies in the cache is not written again.

    A row's draws depend on its name alone, whatever is written beside it. Raises Interrupted once what is being written is kept.
    """
    options, rows, (teacher,) = writing_of(tree["data"]["transfer"]["rollouts"], prepared), prepared.student_rows, taught.modules
    assert isinstance(rows, Windows) and rows.pad is not None
    inputs = {
        "data": prepared.examples.fingerprint, "transform": prepared.transform, "teacher": taught.fixed.fingerprint,
        "rows": digest(prepared.distilled.tolist()), "writing": repr(options),
    }  # fmt: skip
    folder = cache.folder("written", inputs, VERSION)
    parts = prepared.distilled.split(PART)
    with cache.claim(folder):
        if not cache.done(folder):
            sweep(folder)
            for number, which in enumerate(parts):
                place = _place(folder, number)
                if not place.exists():
                    prompts = beginnings(rows, which, options.prompt)
                    keys = [prepared.names[row] for row in which.tolist()]
                    made = continuations(teacher, prompts, options, seed=0, keys=keys)
                    texts = [torch.cat([prompt, one.tokens]) for prompt, one in zip(prompts, made, strict=True)]
                    begun = torch.tensor([len(prompt) for prompt in prompts])
                    atomic.write_bytes(place, save({"texts": _rectangle(texts, options), "begun": begun}))
                on_event(Event("write", "progress", "the teacher's texts", (number + 1) / len(parts)))
                if cancel():
                    raise Interrupted("stopped; what the teacher wrote is kept, and the same command goes on from here")
            cache.finish(folder, {"rows": len(prepared.distilled)})
    stored = torch.from_numpy(disk.array((len(rows.stored), options.prompt + options.tokens), np.int32)).fill_(NOTHING)
    begun = torch.zeros(len(stored), dtype=torch.int64)
    for number, which in enumerate(parts):
        found = load_file(_place(folder, number))
        stored[which], begun[which] = found["texts"], found["begun"]
    made_tokens = int((stored >= 0).sum() - begun.sum())
    said = (f"The teacher wrote {made_tokens:,} tokens behind the beginnings of {len(prepared.distilled):,} training rows, "
            f"{int(begun.sum()):,} tokens: the distilled arm learns these in place of the rows, the control the rows.")
    written = Continued(stored, rows.labels, rows.keys, rows.scale, rows.shift, rows.pad, rows.start, rows.splits, begun)
    return replace(prepared, written=written, notes=(*prepared.notes, said))


def refuse_writing(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """RecipeError where somebody should write who can't, or nothing could be learnt from it."""
    transfer = tree["data"]["transfer"]
    options, source = transfer["rollouts"], transfer["source"]
    drawn = [entry["kind"] for entry in tree["objective"] if _class(entry["kind"]).of_drawn]
    if drawn and source != "rollouts":
        raise RecipeError(four_parts(
            f"{drawn[0]} learns from what the student writes", got=f"data.transfer.source: {source}",
            expected="data.transfer.source: rollouts", otherwise="The term would count nothing", do="Set that source, or remove the term"))
    if source not in ("rollouts", "teacher"):
        return
    if tree["store"]["keep"] != "live":
        raise RecipeError(four_parts(
            f"data.transfer.source: {source} needs a teacher that is asked in every step", got=f"store.keep: {tree['store']['keep']}",
            expected="store.keep: live", otherwise="Nobody could answer about texts that are not written yet", do="Set store.keep: live"))
    refuse_other_tokens(tree, prepared, given, f"data.transfer.source: {source}")
    room, asked = prepared.shape[0], options["prompt"] + options["tokens"]
    if asked > room:
        raise RecipeError(four_parts(
            "data.transfer.rollouts asks for longer texts than rows are", got=f"prompt and tokens together {asked}",
            expected=f"at most {room} tokens", otherwise="Models would write where they have never read",
            do="Lower them, or raise data.passage"))
    if source == "teacher":
        return
    if options["temperature"] == 0:
        raise RecipeError(four_parts(
            "the student's texts must be drawn", got="data.transfer.rollouts.temperature: 0", expected="above 0",
            otherwise="It would see only its likeliest text, and no weight could correct that", do="Use 1"))
    idle = [entry["kind"] for entry in tree["objective"] if options["share"] == 1 and _class(entry["kind"]).of_examples]
    if idle:
        raise RecipeError(four_parts(
            f"{idle[0]} has nothing to learn from the student's own texts", got="data.transfer.rollouts.share: 1",
            expected="a share below 1, or terms on what the teacher says", otherwise="The term would be 0 all along",
            do="Remove it, or lower the share"))


def refuse_other_tokens(tree: Mapping[str, Any], prepared: Prepared, given: Given, what: str) -> None:
    """RecipeError unless the teacher is a model that reads the student's tokens."""
    if given.teacher is not None and not isinstance(given.teacher, nn.Module):
        raise RecipeError(four_parts(
            f"{what} needs a teacher that is a model here", got=type(given.teacher).__name__, expected="a torch.nn.Module",
            otherwise="Nobody could write", do="Hand over the module itself"))
    entries = tree["teacher"] if given.teacher is None else []
    if any(prepared.read_by_teacher(entry) is not prepared for entry in entries):
        raise RecipeError(four_parts(
            f"{what} needs a teacher who reads the student's tokens", got="a tokenizer, or a length, of its own", expected="one tokenizer",
            otherwise="The numbers of one's tokens would be taken for the other's",
            do="Leave teacher.tokenizer and student.tokenizer out"))


def _class(kind: str) -> Any:
    return kinds.find("objectives", kind)


def _place(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.safetensors"


def _rectangle(texts: list[Tensor], options: Writing) -> Tensor:
    """(n, prompt + tokens) int32, filled up with nothing."""
    found = torch.full((len(texts), options.prompt + options.tokens), NOTHING, dtype=torch.int32)
    for row, text in zip(found, texts, strict=True):
        row[: len(text)] = text.int()
    return found
