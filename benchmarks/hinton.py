"""Errors of the finished Hinton runs beside the published ones: `python benchmarks/hinton.py RUNS --data MNIST`.

The runs are made before, by `understudy run hinton_... data.path=MNIST --runs RUNS`; only their folders are read.
Writes benchmarks/results/<date>-<machine in words>-hinton.json and prints the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

PUBLISHED = {
    "hinton_mnist": {"teacher": 67, "control": 146, "distilled": 74},
    "hinton_mnist_jittered": {},
    "hinton_ensemble": {},
    "hinton_omitted_digit": {"distilled, before the bias": 206, "distilled": 109, "threes right": 0.986},
    "hinton_sevens_and_eights": {"distilled, before the bias": 4730, "distilled": 1320},
}


def errors(values, examples):
    return [round((1 - value) * examples) for value in values]


def spread(values):
    return {"mean": round(float(np.mean(values)), 4), "seeds": values}


def collect(run: Path) -> dict:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    n = summary["examples"]
    found = {"teacher": errors([summary["teacher"]["value"]], n)[0]}
    found |= {name: spread(errors(arm["seeds"], n)) for name, arm in summary["arms"].items()}
    distilled = summary["arms"]["distilled"]
    stages = [json.loads(line) for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    return found | {"verdict": distilled.get("verdict"), "difference": distilled.get("difference"),
                    "seconds": round(sum(stage["seconds"] for stage in stages))}


def moved_bias(run: Path, labels: np.ndarray) -> dict:
    """What a student with a matched prior said before its biases were moved: the logits minus what the note says was added."""
    recipe = json.loads((run / "provenance.json").read_text(encoding="utf-8"))["recipe"]
    names = recipe["student"]["match_prior"]
    before, threes, added = [], [], []
    for folder in sorted((run / "arms" / "distilled").iterdir()):
        note = json.loads((folder / "result.json").read_text(encoding="utf-8"))["notes"][-1]
        logits = load_file(folder / "outputs.safetensors")["test"].copy()
        moves = {name: float(note.split(f"{name} ")[1].split()[0].rstrip(",")) for name in names}
        answers = logits.argmax(1)
        threes.append(round(float((answers[labels == 3] == 3).mean()), 4))
        for name, move in moves.items():
            logits[:, int(name)] -= move
        before.append(int((logits.argmax(1) != labels).sum()))
        added.append(moves)
    found = {"distilled, before the bias": spread(before), "bias added": added}
    return found | ({"threes right": spread(threes)} if names == ["3"] else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST idx files")
    options = parser.parse_args()
    from understudy.datasets.idx import Dataset
    from understudy.stages.machine import hardware

    examples = Dataset(str(options.data)).load()
    labels = examples.labels[examples.split == "test"]
    rows: dict[str, dict] = {}
    for name, published in PUBLISHED.items():
        run = options.runs / name
        if not (run / "summary.json").exists():
            continue
        rows[name] = collect(run) | (moved_bias(run, labels) if "omitted" in name or "sevens" in name else {}) | {"published": published}
    few = options.runs / "hinton_few_labels" / "series.json"
    if few.exists():
        series = json.loads(few.read_text(encoding="utf-8"))
        n = series["examples"]
        rows["hinton_few_labels"] = {str(row["value"]): {arm: spread(errors(row[arm]["seeds"], n)) for arm in ("control", "distilled")}
                                     | {"verdict": row["verdict"]} for row in series["rows"]}
    conditions = "one thread, a machine shared with other work: seconds are upper bounds"
    out = {"machine": hardware()["words"], "conditions": conditions, "runs": rows}
    words = out["machine"].lower().replace(",", "").replace(" ", "-")
    path = Path(__file__).parent / "results" / f"{datetime.date.today()}-{words}-hinton.json"
    path.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(out, indent=1))
    print(path)


if __name__ == "__main__":
    main()
