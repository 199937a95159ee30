"""What is left of an encoder right after a cut, by what its parts were chosen by: `python benchmarks/importance.py RUN --machine "WORDS"`.

RUN is a finished run of `intent_classifier` whose cache still holds the teacher. All layers stay; heads (with the width), feed-forward
units or both shrink, and nothing is trained: the accuracy on the run's test rows says what each `student.from_teacher.importance` keeps.
Beside them parts that were drawn at random, three times. Writes results/<date>-<machine>-importance.json, and the table of
docs/recipe.md; without RUN the table alone.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from pages import ROOT, keep, newest, put
from torch import Tensor, nn

from understudy import recipe
from understudy.cache import Cache, beside
from understudy.compress import part_importance
from understudy.stages import derive, teach
from understudy.stages.common import fresh_student
from understudy.stages.prepare import Given, Prepared, prepare
from understudy.stages.tasks.classification import Task
from understudy.stages.taught import Taught
from understudy.students.from_teacher import Layout, Sizes
from understudy.students.weights import load_weights
from understudy.training.numerics import Numerics

PAGE = ROOT / "docs" / "recipe.md"
KINDS = ("activation", "magnitude", "taylor")
SHARES = {"3/4 of the units": (1.0, 0.75), "1/2 of the units": (1.0, 0.5), "1/4 of the units": (1.0, 0.25),
          "3/4 of heads and width": (0.75, 1.0), "1/2 of heads and width": (0.5, 1.0), "3/4 of all three": (0.75, 0.75)}
"""What stays -> shares of heads with the width, and of units."""
DRAWS = 3


def drawn(seed: int) -> Callable[..., part_importance.Importance]:
    """Importance by chance, in the place of that by weight."""
    def call(layout: Layout, module: nn.Module, had: Sizes, tokens: Tensor | None = None) -> part_importance.Importance:
        draw = torch.Generator().manual_seed(seed)
        hidden, *parts = (torch.rand(count, generator=draw) for count in (had.width, *[had.heads, had.inner] * had.layers))
        return part_importance.Importance(hidden, parts[::2], parts[1::2])

    return call


def left(tree: dict[str, Any], data: Prepared, taught: Taught, cache: Path) -> float:
    """The accuracy of the student on test rows before its first step."""
    begun = derive.started(tree, data, taught, Cache(cache))
    module = fresh_student(begun, data, Given(), 0)
    load_weights(module, begun["student"]["weights"])
    said = Task().answers(module.eval(), data, data.test, Numerics("float32", "contiguous"))
    return float((said.argmax(1) == data.rows.labels[data.test]).float().mean())


def measured(run: Path) -> dict[str, Any]:
    """Accuracy by what stays and by kind."""
    def wanted(sizes: str) -> recipe.Recipe:
        return recipe.load(run / "recipe.yaml", [f"student={{from_teacher: {{{sizes}}}, tokenizer: {{length: 64}}}}"])

    whole = wanted("layers: 1")
    data, tree = prepare(whole, Given()), recipe.resolved(whole)
    taught = teach.obtain(tree, data, Given(), Cache(beside(run)), lambda event: None, lambda: False, may_train=False)
    config = taught.modules[0].model.config.to_dict()
    had = Sizes.of(config)
    theirs = data.read_by_teacher(tree["teacher"][0])
    answers = Task().answers(taught.modules[0].eval(), theirs, theirs.test, Numerics("float32", "contiguous"))
    right = answers.argmax(1) == data.rows.labels[data.test]
    found: dict[str, Any] = {"teacher": float(right.float().mean()), "examples": len(data.test), "sizes": vars(had), "rows": {}}
    for name, (heads, units) in SHARES.items():
        sizes = f"layers: {had.layers}, width: {round(heads * had.heads) * had.head}, inner: {round(units * had.inner)}"
        row: dict[str, Any] = {}
        for kind in (*KINDS, *range(DRAWS)):
            asked = recipe.resolved(wanted(f"{sizes}, importance: {'magnitude' if isinstance(kind, int) else kind}"))
            derive.settle_student(asked, data)
            with tempfile.TemporaryDirectory() as cache:
                if isinstance(kind, int):
                    with mock.patch.object(part_importance, "magnitude", drawn(kind)):
                        row.setdefault("chance", []).append(left(asked, data, taught, Path(cache)))
                else:
                    row[kind] = left(asked, data, taught, Path(cache))
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
        lines.append(f"| {name} | {' | '.join(f'{100 * row[kind]:.1f} %' for kind in KINDS)} | {chance} % |")
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
