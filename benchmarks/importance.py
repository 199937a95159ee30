"""What is left of an encoder right after a cut, by what its parts were chosen by: `python benchmarks/importance.py RUN --machine "WORDS"`.

RUN is a run of `intent_classifier` whose cache, the one beside it, still holds the teacher. All layers stay; heads (with the width),
feed-forward units or both shrink, and nothing is trained: the accuracy on the run's test rows says what each
`student.from_teacher.importance` keeps. Beside them parts that were drawn at random, three times. Writes
results/<date>-<machine>-importance.json, and the table of docs/recipe.md; without RUN the table alone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pages import ROOT, keep, newest, put
from torch import Tensor, nn

from understudy import recipe
from understudy.cache import Cache, beside
from understudy.compress import part_importance
from understudy.compress.part_importance import Importance
from understudy.stages import derive, prune, teach
from understudy.stages.common import fresh_student
from understudy.stages.prepare import Given, Prepared, prepare
from understudy.stages.tasks.classification import Task
from understudy.students import cut_bert, from_teacher
from understudy.students.from_teacher import Sizes
from understudy.students.weights import fill
from understudy.training.numerics import Numerics

PAGE = ROOT / "docs" / "recipe.md"
KINDS = ("activation", "magnitude", "taylor")
SHARES = {"3/4 of the units": (1.0, 0.75), "1/2 of the units": (1.0, 0.5), "1/4 of the units": (1.0, 0.25),
          "3/4 of heads and width": (0.75, 1.0), "1/2 of heads and width": (0.5, 1.0), "3/4 of all three": (0.75, 0.75)}
"""What stays -> shares of heads with the width, and of units."""
DRAWS = 3


def drawn(seed: int, had: Sizes) -> Importance:
    """Importance by chance."""
    draw = torch.Generator().manual_seed(seed)
    hidden, *parts = (torch.rand(count, generator=draw) for count in (had.width, *[had.heads, had.inner] * had.layers))
    return Importance(hidden, parts[::2], parts[1::2])


def scored(kind: str, teacher: nn.Module, theirs: Prepared, had: Sizes, tokens: Tensor | None) -> Importance:
    """Importance as a run measures it."""
    batches = theirs.rows.batches(prune.calibration(kind, theirs, derive.CALIBRATION), derive.AT_ONCE_WITH_SLOPES)
    if kind == "activation":
        return part_importance.activation(cut_bert, teacher, ((one.inputs, one.documents >= 0) for one in batches), had)
    if kind == "taylor":
        return part_importance.taylor(cut_bert, teacher, ((one.inputs, one.labels) for one in batches), had, tokens)
    return part_importance.magnitude(cut_bert, teacher, had, tokens)


def right(module: nn.Module, data: Prepared) -> float:
    """The share of test rows that a model gets right."""
    said = Task().answers(module.eval(), data, data.test, Numerics("float32", "contiguous"))
    return float((said.argmax(1) == data.rows.labels[data.test]).float().mean())


def student_of(run: Path, wanted: Mapping[str, Any]) -> recipe.Recipe:
    """The run's recipe with another student."""
    return recipe.load(run / "recipe.yaml", ["student=" + json.dumps({"from_teacher": wanted, "tokenizer": {"length": 64}})])


def measured(run: Path) -> dict[str, Any]:
    """Accuracy by what stays and by kind; each row has draws of its own."""
    wanted = student_of(run, {"layers": 1})
    data, tree = prepare(wanted, Given()), recipe.resolved(wanted)
    taught = teach.obtain(tree, data, Given(), Cache(beside(run)), lambda event: None, lambda: False, may_train=False)
    teacher, theirs = taught.modules[0], data.read_by_teacher(tree["teacher"][0])
    had, state = Sizes.of(teacher.model.config.to_dict()), teacher.state_dict()
    tokens = derive.rows_of(theirs.preprocess.tokenizer, data.preprocess.tokenizer)
    scores = {kind: scored(kind, teacher, theirs, had, tokens) for kind in KINDS}
    found: dict[str, Any] = {"teacher": right(teacher, theirs), "examples": len(data.test), "sizes": vars(had), "rows": {}}
    for place, (name, (heads, units)) in enumerate(SHARES.items()):
        sizes = {"layers": had.layers, "width": round(heads * had.heads) * had.head, "inner": round(units * had.inner)}
        asked = recipe.resolved(student_of(run, sizes))
        derive.settle_student(asked, data)
        now, row = Sizes.of(asked["student"]["model"]["config"]), {}
        for kind, importance in [*scores.items(), *(("chance", drawn(DRAWS * place + at, had)) for at in range(DRAWS))]:
            kept = replace(part_importance.chosen(importance, range(had.layers), had, now), tokens=tokens)
            module = fresh_student(asked, data, Given(), 0)
            fill(module, from_teacher.cut(cut_bert, state, kept, had))
            row.setdefault(kind, []).append(round(right(module, data), 4))
        found["rows"][name] = row
        print(name, row, flush=True)
    return found


def table(found: Mapping[str, Any]) -> str:
    """The table of the page."""
    head = " | ".join(f"`{kind}`" for kind in KINDS)
    lines = [f"| what stays, of all {found['sizes']['layers']} layers | {head} | drawn at random, {DRAWS} times |",
             "|---|" + "---|" * (len(KINDS) + 1)]
    for name, row in found["rows"].items():
        chance = ", ".join(f"{100 * value:.1f}" for value in row["chance"])
        lines.append(f"| {name} | {' | '.join(f'{100 * row[kind][0]:.1f} %' for kind in KINDS)} | {chance} % |")
    under = f"The teacher: {100 * found['teacher']:.1f} %. {found['examples']:,} test sentences; {found['machine']}."
    return "\n".join(lines) + f"\n\n{under}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--machine", default="a machine that nobody described")
    options = parser.parse_args()
    if options.run is not None:
        print(keep("importance", options.machine, measured(options.run)).relative_to(ROOT))
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), {"importance": table(newest("importance"))}), encoding="utf-8")


if __name__ == "__main__":
    main()
