"""Run the packaged recipes that need no data of one's own, and record what came out: `python benchmarks/modes.py RUNS [NAME ...] [--read]`.

One recipe a mode of distillation and a cell of the field's two axes. Writes docs/methods/results.json, from which docs/make_methods.py
makes the pages; a recipe that changes later is "not measured" there until this is run again. --read: only runs that are finished in RUNS,
with the recipe as it is now. Twenty minutes on a quiet core; a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml

from understudy import pipeline, recipe
from understudy.stages.prepare import Given

RESULTS = Path(__file__).parents[1] / "docs" / "methods" / "results.json"
CONDITIONS = "one thread of a machine that was shared with other work: seconds are upper bounds"


def names() -> list[str]:
    """The packaged recipes whose data come with scikit-learn, without those that are several runs."""
    found = {name: recipe.load(name) for name in recipe.packaged()}
    return [name for name, one in found.items() if one.data.kind == "builtin" and one.series is None and one.sweep is None]


def digest(name: str) -> str:
    """sha256 of what the recipe says; its comments don't count."""
    said = recipe.parse(recipe.packaged()[name].read_text(encoding="utf-8"))
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def same(folder: Path, name: str) -> bool:
    """Whether a run is finished and of the recipe as it is now."""
    if not (folder / "summary.json").exists():
        return False
    ran = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    return not recipe.changed(recipe.resolved(recipe.build(ran, {}, "recipe.yaml")), recipe.resolved(recipe.load(name)))


def collect(folder: Path, name: str) -> dict[str, Any]:
    """What the page says of a run."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    stages = [json.loads(line) for line in (folder / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    longest: dict[str, float] = {}
    for stage in stages:  # a run that went on after a stop has each stage twice
        longest[stage["stage"]] = max(longest.get(stage["stage"], 0.0), stage["seconds"])
    control, distilled = summary["arms"]["control"], summary["arms"]["distilled"]
    own = distilled.get("kept_reason") is not None
    return {
        "recipe": digest(name),
        "metric": summary["metric"],
        "verdict": distilled["verdict"],
        "control": round(control["mean"], 6),
        "distilled": round(distilled["mean"], 6),
        "difference": round(distilled["difference"]["value"], 6),
        "ci95": [round(end, 6) for end in distilled["difference"]["ci95"]],
        "teacher": None if own else round(summary["teacher"]["value"], 6),
        "seeds": len(distilled["seeds"]),
        "examples": summary["examples"],
        "seconds": round(sum(longest.values())),
        "machine": json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["hardware"]["words"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--read", action="store_true", help="start nothing")
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text(encoding="utf-8"))["runs"] if RESULTS.exists() else {}
    for name in options.names or names():
        if not options.read:
            pipeline.run(recipe.load(name), given=Given(), options=pipeline.Options(runs=options.runs, replace=True))
        if same(options.runs / name, name):
            known[name] = collect(options.runs / name, name)
            print(f"{name}: {known[name]['verdict']} {100 * known[name]['difference']:+.1f} points")
        else:
            print(f"{name}: no finished run of this recipe in {options.runs}")
    out = {"conditions": CONDITIONS, "runs": {name: known[name] for name in sorted(known) if name in recipe.packaged()}}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    print(RESULTS)


if __name__ == "__main__":
    main()
