"""Figures of the finished runs of the language recipes, and their tables in docs/language.md.

    python benchmarks/language.py RUNS --machine "WORDS"

The runs are made before, by `understudy run RECIPE ... --runs RUNS`; only their folders are read. Writes
benchmarks/results/<date>-<machine>-language.json, and puts the tables between the marks in the page and in the README. A run that is not in
RUNS keeps what was written down before. Without RUNS only the page and the README are made.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pages import ROOT, keep, newest, placeless, put

PAGE, README = ROOT / "docs" / "language.md", ROOT / "README.md"
TABLES = {
    "intents": ["intent_textcnn", "intent_bag", "intent_wide", "intent_layer", "intent_textcnn_more", "intent_wide_more",
                "intent_tenth_more", "intent_bpe_more", "intent_bpe_wide_more"],
    "few": ["intent_few_alone", "intent_few"],
    "sentiment": ["sst2_more"],
    "masked": ["distil_bert"],
    "sentences": ["static_embedding", "sentence_embedding"],
    "next_word": ["next_word"],
    "cross": ["cross_tokenizer"],
    "on_policy": ["on_policy", "off_policy"],
    "draft": ["draft_model"],
}
"""Mark in the page -> the runs of its table."""
NAMES = {
    "intent_textcnn": "`textcnn`, the recipe's", "intent_bag": "`bag` of width 48", "intent_wide": "`textcnn` of width 128, 256 filters",
    "intent_wide_more": "the wider one, with unlabelled texts",
    "intent_bpe_more": "8,000 byte pairs, width 128, 256 filters, unlabelled texts",
    "intent_tenth_more": "width 96 and 256 filters, with unlabelled texts",
    "intent_bpe_wide_more": "width 192 and 320 filters, 8,000 byte pairs, with unlabelled texts",
    "intent_layer": "2 layers of the teacher, width 192",
    "intent_few_alone": "`textcnn`, the recipe's, the 1,500 labelled texts alone",
    "intent_few": "`textcnn`, the recipe's, with the 13,500 unlabelled texts",
    "intent_textcnn_more": "`textcnn`, with unlabelled texts", "sst2_more": "`textcnn`, the recipe's",
    "distil_bert": "3 of 6 layers", "static_embedding": "a table, 256 numbers",
    "sentence_embedding": "3 of 6 layers", "next_word": "`next_word`", "cross_tokenizer": "`cross_tokenizer`", "on_policy": "`on_policy`",
    "off_policy": "the same loss on the rows alone", "draft_model": "`draft_model`"}
HAVE = {
    "intent_textcnn": ("15,000 labelled sentences", "all"), "intent_few_alone": ("1,500 of them, ten an intent", "few"),
    "intent_few": ("these 1,500, and the other 13,500 without labels", "few, self-trained")}
"""Runs of the README's table -> the texts that there are, and the way of `few_labels.py` that has the same."""
LABELS = {"accuracy": "accuracy", "spearman": "Spearman", "masked_token": "hidden tokens right", "bits_per_byte": "bits per byte"}
SHARES = ("accuracy", "masked_token", "next_token", "next_word", "next_word_of_three", "outside_noticed", "inside_passed")
MODELS = ("teacher", "control", "distilled")
SKIPPED = ("name", "series", "sweep", "gates")


def collected(run: Path) -> dict[str, Any]:
    """What a table needs of a run, and the conditions that it was made under."""
    summary, details, bench = (json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("summary", "details", "bench"))
    tree = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    distilled, latency = summary["arms"]["distilled"], bench.get("latency") or {}
    seconds = [json.loads(line) for line in (run / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
    stages: dict[str, float] = {}
    for one in seconds:
        stages[one["stage"]] = stages.get(one["stage"], 0.0) + one["seconds"]
    found = {
        "metric": summary["metric"], "examples": summary["examples"], "trivial": summary["trivial"], "teacher": summary["teacher"],
        "teacher_ci95": next((row["ci95"] for row in details["table"] if row["model"] == "teacher"), None),
        "control": {key: summary["arms"]["control"][key] for key in ("mean", "ci95")},
        "controlled_by": summary.get("control", "no_teacher"),
        "distilled": {key: distilled.get(key) for key in ("mean", "ci95", "parameters", "verdict", "difference", "retention", "fidelity")},
        "seeds": len(distilled["seeds"]), "parameters_ratio": summary["parameters_ratio"], "worst_slice": distilled.get("worst_slice"),
        "speed": latency.get("speedup"), "measures": details["measures"], "own_text": details.get("own_text") or {},
        "draft": details.get("draft"), "stages": {name: round(value, 1) for name, value in stages.items()},
        "training": {key: tree["training"][key] for key in ("epochs", "steps", "batch_size", "lr")},
        "recipe": placeless({key: value for key, value in tree.items() if key not in SKIPPED}),
        "machine": json.loads((run / "provenance.json").read_text(encoding="utf-8"))["hardware"]["words"],
    }
    return found


def figure(value: float | None, metric: str, ci95: Sequence[float] | None = None) -> str:
    """A value with its interval, in the page's units."""
    if value is None:
        return "–"
    share = metric in SHARES
    shown = [f"{100 * one:.1f}" if share else f"{one:.3f}" for one in (value, *(ci95 or ()))]
    return f"{shown[0]}{' %' if share else ''}" + (f" [{shown[1]}, {shown[2]}]" if ci95 else "")


def difference(found: Mapping[str, Any]) -> str:
    """The verdict, and the difference to the control."""
    metric, change = found["metric"], found["distilled"]["difference"]
    share = metric in SHARES
    digits = 1 if share else 3
    one, low, high = (signed(100 * part if share else part, digits) for part in (change["value"], *change["ci95"]))
    return f"**{found['distilled']['verdict']}**, {one} [{low}, {high}]"


def signed(value: float, digits: int) -> str:
    """A difference; one that rounds to zero has no sign."""
    return f"{value:+.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def table(runs: Mapping[str, Any], names: Sequence[str]) -> str:
    """The rows of these runs, as far as they are there."""
    there = [name for name in names if name in runs]
    if not there:
        return "Not measured yet.\n"
    first = runs[there[0]]
    metric = first["metric"]
    unit = LABELS[metric]
    lines = [f"| student | {unit}: teacher | control | distilled | against the control | of the teacher's parameters | kept (retention) |",
             "|---|---|---|---|---|---|---|"]
    for name in there:
        one = runs[name]
        kept = one["distilled"]["retention"] or {}
        teacher = figure(one["teacher"]["value"], metric, one["teacher_ci95"])
        control, distilled = (figure(one[arm]["mean"], metric, one[arm]["ci95"]) for arm in ("control", "distilled"))
        size = f"{100 * one['parameters_ratio']:.1f} %"
        lines.append(f"| {NAMES[name]} | {teacher} | {control} | {distilled} | {difference(one)} | {size} | {100 * kept['value']:.1f} % |")
    return "\n".join(lines) + "\n"


def beside(name: str, found: Mapping[str, Any]) -> str:
    """What else a run found, in a line."""
    said = []
    if found["speed"]:
        said.append(f"{found['speed']:.1f} times as fast as the teacher on one example (torch, one thread)")
    for one in found["measures"]:
        values = {model: figure(one[model]["value"], one["name"], one[model]["ci95"]) for model in MODELS if one.get(model)}
        said.append(f"{one['label']}: " + ", ".join(f"{model} {value}" for model, value in values.items()))
    worst = found["worst_slice"]
    if worst:
        name_of = worst["name"].replace("class=", "the worst class by validation, ")
        unit = "bits" if worst.get("unit") == "bits" else found["metric"]
        values = {model: figure(worst[model], unit) for model in ("teacher", "distilled") if model in worst}
        said.append(f"{name_of}: " + ", ".join(f"{model} {value}" for model, value in values.items()))
    if found["own_text"]:
        values = {model: f"{one['kl_nats']:.3f}" for model, one in found["own_text"].items() if isinstance(one, Mapping)}
        said.append("KL from the teacher on its own text, nats: " + ", ".join(f"{model} {value}" for model, value in values.items()))
    if found["draft"]:
        said += [sentence.rstrip(".") for sentence in found["draft"]["sentences"]]
    fidelity = found["distilled"]["fidelity"] or {}
    if fidelity.get("kl_nats") is not None:
        said.append(f"KL from the teacher on test rows {fidelity['kl_nats']:.3f} nats")
    budget = {key: value for key, value in found["training"].items() if value is not None}
    said += [f"{found['seeds']} seeds, {found['examples']:,} test items", ", ".join(f"{key} {value}" for key, value in budget.items())]
    said += [found["machine"]] if "machine" in found else []
    return f"- {NAMES[name]}: " + "; ".join(said) + ".\n"


def block(runs: Mapping[str, Any], names: Sequence[str]) -> str:
    """The table of these runs, and what else each found."""
    lines = "".join(beside(name, runs[name]) for name in names if name in runs)
    return table(runs, names) + ("\n" + lines if lines else "")


def labels(runs: Mapping[str, Any]) -> str:
    """What the teacher adds to a student with many labels and with few, beside a linear model of the same texts."""
    linear = newest("few_labels").get("ways", {})
    lines = ["| to learn from | the teacher | TF-IDF, linear SVM | the student without a teacher | with it | points, and verdict |",
             "|---|---|---|---|---|---|"]
    for name, (there, way) in HAVE.items():
        if name in runs and way in linear:
            one = runs[name]
            values = [one["teacher"]["value"], linear[way]["value"], one["control"]["mean"], one["distilled"]["mean"]]
            lines.append(f"| {there} | {' | '.join(figure(value, one['metric']) for value in values)} | {difference(one)} |")
    return "\n".join(lines) + "\n"


def static() -> str:
    """Static tables beside Model2Vec's, as `static_embedding.py` measured them in one run."""
    found = newest("static_embedding")
    lines = ["| table | numbers a token | Spearman | over Model2Vec, as it comes | over it, pooling as ours | CPU seconds |",
             "|---|---|---|---|---|---|"]
    for name, arm in found["arms"].items():
        if " 256" not in name and " 64" not in name or "int8" in name or "float16" in name:
            continue
        what, _, width = name.rpartition(" ")
        over = [f"{one['difference']:+.3f} [{one['ci95'][0]:+.3f}, {one['ci95'][1]:+.3f}]" if one else "–"
                for one in (arm.get("minus Model2Vec"), arm.get("minus Model2Vec, pooling first"))]
        made = f"{arm['cpu_seconds']:.0f}" if "cpu_seconds" in arm else "–"
        lines.append(f"| {what} | {width} | {figure(arm['spearman'], 'spearman', arm['ci95'])} | {' | '.join(over)} | {made} |")
    rates = found["texts_a_cpu_second"]
    said = "Texts a CPU second, median of interleaved rounds: " + (
        f"ours {rates['ours, freshly loaded']['median']:,}, Model2Vec {rates['Model2Vec']['median']:,}.")
    return "\n".join(lines) + f"\n\n{said} model2vec {found['model2vec']}.\n"


def fused() -> str:
    """A step's loss and gradients from hidden states and output layers, as `fused_loss.py` measured everybody in one run."""
    found = newest("fused_loss")
    most = max(found["positions"], key=int)
    rows = {name: {key: statistics.median(one[key] for one in said) for key in ("seconds", "MiB")}
            for name, said in found["positions"][most]["rows"].items()}
    own = rows["ours, float32"]
    lines = ["| forward KL and its gradients | CPU seconds | MiB beside models and gradients | times ours in float32: seconds | MiB |",
             "|---|---|---|---|---|"]
    lines += [f"| {name} | {one['seconds']:.1f} | {one['MiB']:,.0f} | {one['seconds'] / own['seconds']:.2f} | "
              f"{one['MiB'] / own['MiB']:.1f} |" for name, one in rows.items()]
    under = (f"{int(most):,} positions, {found['classes']:,} tokens, student {found['student']} and teacher {found['teacher']} wide, "
             f"{found['threads']} thread; {found['machine']}; medians of interleaved rounds; torch {found['torch']}, TRL {found['trl']}, "
             f"Liger {found['liger-kernel']}.")
    return "\n".join(lines) + f"\n\n{under}\n"


def blocks(runs: Mapping[str, Any]) -> dict[str, str]:
    """Mark -> what stands there."""
    return {"model2vec": static(), "fused": fused(), **{mark: block(runs, names) for mark, names in TABLES.items()}}


def results() -> dict[str, Any]:
    """The newest results."""
    found: dict[str, Any] = newest("language").get("runs", {})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="?")
    parser.add_argument("--machine", default="a machine that nobody described")
    options = parser.parse_args()
    if options.runs is not None:
        names = [name for names in TABLES.values() for name in names]
        runs = {name: collected(options.runs / name) for name in names if (options.runs / name / "summary.json").is_file()}
        print(keep("language", options.machine, {"runs": {**results(), **runs}}).relative_to(ROOT))
    PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), blocks(results())), encoding="utf-8")
    README.write_text(put(README.read_text(encoding="utf-8"), {"labels": labels(results())}), encoding="utf-8")
    for mark, block in blocks(results()).items():
        print(f"\n{mark}\n{block}")


if __name__ == "__main__":
    main()
