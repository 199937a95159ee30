"""The reference jobs of docs/ship.md: from a recipe to files that ship, with what each step saved.

    python benchmarks/ship.py RUNS --run DATA ENCODER     run what is not there yet, one command after another (hours of one core)
    python benchmarks/ship.py RUNS --machine "WORDS"      read the run folders, write the results down, and fill the page; what RUNS
                                                          does not hold stays as the newest results have it
    python benchmarks/ship.py                             fill the page from the newest results

DATA holds mnist/, cifar10/, cifar10_resnets/, adult/, fsdd4/, clinc150/ and what `texts.py` reads, ENCODER is a folder in the Hugging
Face layout.
Every run is an ordinary `understudy run`, so an interrupted one goes on. Beside each job: the teacher alone in 8 bits (what quantising
gives without a student), the teacher pruned (what pruning gives, before and after recovery), and students of other sizes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ship_page
import texts
import yaml
from pages import ROOT, keep, newest, placeless, put

from understudy import atomic
from understudy.errors import GateError, RecipeError
from understudy.stages.elsewhere import export_teacher
from understudy.stages.prepare import Given

PAGE = ROOT / "docs" / "ship.md"
BENCH = ("--watts", "12", "--grid", "380", "--prices", "example", "--batch", "32")


@dataclass(frozen=True)
class Job:
    """A packaged recipe. data: its overrides, with {data}, {encoder} and {more}, texts without labels. size: the share of the teacher that
    its student is, where that is one of the page's. sizes: other shares -> overrides of a student of that size. pruned: overrides that
    prune the teacher to the student's size; quantised: how the teacher alone is put in 8 bits, "" where it can't be. one_seed: which sizes,
    and "pruned", are of one seed, as more took too long. fold: of a recipe that makes a run for each group held back, the one whose models
    are measured."""

    title: str
    data: tuple[str, ...]
    size: str = ""
    sizes: Mapping[str, str] = field(default_factory=dict)
    pruned: str = ""
    quantised: str = "auto"
    one_seed: tuple[str, ...] = ()
    fold: str = ""


SIZES = ship_page.SHARES
TENTH = "student={from_teacher: {layers: 3, width: 64, inner: 256}}"
"""A tenth of a 6-layer encoder: every second layer, a sixth of the width. Its table of tokens is the larger part of it."""
JOBS = {
    "mnist": Job(
        "handwritten digits: 2×1200 units → 256 and 128", ("data.path={data}/mnist",), "1/10",
        {"1/2": "student.model.hidden=[760, 760]", "1/4": "student.model.hidden=[470, 470]", "1/20": "student.model.hidden=[135, 100]",
         "1/50": "student.model.hidden=[58, 40]"},
        "student={from_teacher: {prune: 0.9}}"),
    "cifar10_resnet": Job(
        "pictures: ResNet-56 → ResNet-8",
        ("data.path={data}/cifar10", "teacher.weights={data}/cifar10_resnets/resnet56-cifar10.safetensors",
          "export=[safetensors, onnx, onnx_int8]", "compress={{quantize: {{epochs: 3, lr: 1e-4}}}}"), "1/10",
        {"1/2": "student.model={arch: resnet, depth: 32}", "1/4": "student.model={arch: resnet, depth: 14}",
         "1/20": "student.model={arch: cnn, width: 38}", "1/50": "student.model={arch: cnn, width: 23}"},
        "student={from_teacher: {prune: 0.9}}", one_seed=(*SIZES, "pruned")),
    "adult_trees": Job(
        "a table of incomes: boosted trees → 64 units", ("data.path={data}/adult/adult.csv.gz",), "",
        {"1/2": "student.model.hidden=[192]", "1/4": "student.model.hidden=[96]", "1/10": "student.model.hidden=[38]",
         "1/20": "student.model.hidden=[19]", "1/50": "student.model.hidden=[7]"}, quantised=""),
    "spam_filter": Job(
        "spam: a 6-layer encoder → a convolutional net",
        ("data.path={data}/sms_spam/SMSSpamCollection.gz", "teacher.model.path={encoder}"), "",
        {share: f"student.model={{arch: textcnn, width: {width}, filters: {filters}}}" for share, width, filters in (
            ("1/2", 1536, 96), ("1/4", 768, 96), ("1/10", 256, 256), ("1/20", 144, 192), ("1/50", 64, 96))},
        TENTH, "dynamic", ("1/2", "1/4", "1/20", "1/50", "pruned")),
    "intent_classifier": Job(
        "150 intents: a 6-layer encoder → a convolutional net, with unlabelled texts",
        ("data.path={data}/clinc150/data_full.json.gz", "teacher.model.path={encoder}", "data.unlabelled_path={more}",
         "student.model={{arch: textcnn, width: 96, filters: 256}}", "training.steps=5000"), "1/10",
        {share: f"student.model={{arch: textcnn, width: {width}, filters: {filters}}}" for share, width, filters in (
            ("1/2", 512, 128), ("1/4", 256, 256), ("1/20", 52, 112), ("1/50", 20, 64))},
        TENTH, "dynamic", (*SIZES, "pruned")),
    "spoken_digits": Job(
        "spoken digits of a speaker held back: a convolutional net → a tenth of it", ("data.path={data}/fsdd4/recordings.tar.xz",), "1/10",
        {share: f"student.model={{arch: cnn, width: {width}}}" for share, width in (("1/2", 22), ("1/4", 15), ("1/20", 5), ("1/50", 2))},
        "student={from_teacher: {prune: 0.75}}", one_seed=("1/2",), fold="test_groups-__nicolas__"),
}
PLAIN = ("export=[safetensors]", "compress.quantize=null")
"""Overrides of a run that is made for its student alone."""
ALONE = "teacher-int8.json"
"""In a run's folder: the teacher alone in 8 bits."""


def understudy(*words: str) -> int:
    """The command line in a process of its own; its exit code, 4 where a proof or a gate failed."""
    print("understudy", *words, flush=True)
    code = subprocess.run([sys.executable, "-m", "understudy.cli", *words], check=False).returncode
    if code not in (0, 4):
        raise SystemExit(code)
    return code


def run_all(runs: Path, data: Path, encoder: Path, only: Sequence[str]) -> None:
    """Everything that is not there yet."""
    more = runs / "more.txt"
    for name, job in JOBS.items():
        if only and name not in only:
            continue
        if any("{more}" in one for one in job.data):
            atomic.write_text(more, "\n".join(texts.more(data)) + "\n")
        given = [one.format(data=data, encoder=encoder, more=more) for one in job.data]
        once(runs, name, name, *given)
        benched(runs / name / job.fold)
        for share, change in job.sizes.items():
            once(runs, f"{name}-{share.replace('/', '_')}", name, *given, change, *PLAIN, *seeds(job, share))
        if job.pruned:
            once(runs, f"{name}-pruned", name, *given, job.pruned, *PLAIN, *seeds(job, "pruned"))
        if job.quantised and not (runs / name / ALONE).is_file():
            atomic.write_json(runs / name / ALONE, in_8_bits(runs / name / job.fold, job.quantised))


def seeds(job: Job, which: str) -> tuple[str, ...]:
    """The override for what is of one seed."""
    return ("training.seeds=1",) if which in job.one_seed else ()


def once(runs: Path, name: str, recipe: str, *overrides: str) -> None:
    """A run, unless it is finished."""
    if not finished(runs / name):
        understudy("run", recipe, f"name={name}", "--runs", str(runs), *overrides)


def finished(run: Path) -> bool:
    """Whether a run, or all runs of a series, came to their end."""
    return (run / "summary.json").is_file() or (run / "series.json").is_file()


def benched(run: Path) -> None:
    """Its models measured, unless they are."""
    if not measured(run):
        understudy("bench", str(run), *BENCH)


def read(path: Path) -> dict[str, Any]:
    """A JSON file, {} where there is none."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def together(before: Mapping[str, Any], runs: Path, name: str, job: Job) -> dict[str, Any]:
    """What was known of a job, and what these runs add: its own run only where its models were measured."""
    beside = {"sizes": before.get("sizes", {}) | sizes(runs, name, job),
              "pruned": pruned(runs / f"{name}-pruned") or before.get("pruned"),
              "quantised": read(runs / name / ALONE) or before.get("quantised"), "size": job.size}
    return {**before, **(collected(runs / name, job.fold) if measured(runs / name / job.fold) else {}), **beside}


def sizes(runs: Path, name: str, job: Job) -> dict[str, Any]:
    """Share of the teacher -> the student of that size, as far as there are runs."""
    folders = {share: runs / f"{name}-{share.replace('/', '_')}" for share in job.sizes}
    return {share: point(run) for share, run in folders.items() if finished(run)}


def measured(run: Path) -> bool:
    """Whether `understudy bench` has measured its models."""
    return "measured" in read(run / "bench.json")


def collected(whole: Path, fold: str) -> dict[str, Any]:
    """What the page says of a job, and the conditions that it was measured under; of a series, of one of its runs and of all together."""
    run = whole / fold
    summary, details, bench = read(run / "summary.json"), read(run / "details.json"), read(run / "bench.json")["measured"]
    tree = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    rows = bench["models"]
    return {
        "metric": summary["metric"], "examples": summary["examples"], "teacher": summary["teacher"]["value"],
        "control": kept(summary["arms"]["control"]), "distilled": kept(summary["arms"]["distilled"]),
        "seeds": len(summary["arms"]["distilled"]["seeds"]),
        "models": [{key: row[key] for key in ("name", "role", "runtime", "bytes", "parameters", "macs", "quality", "failed")} | figures(row)
                   for row in rows],
        "savings": bench.get("savings", {}),
        "conditions": {key: bench.get(key) for key in ("machine", "threads", "repeats", "load")},
        "failed": [{"format": one["format"], "reason": one["failed"]} for one in details["exports"] if one.get("failed")],
        "proofs": {one["format"]: one.get("parity") for one in details["exports"]},
        "recipe": placeless(tree), **({"series": read(whole / "series.json"), "over": point(whole)} if fold else {}),
    }


def figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """Of a measured model, at one row a call."""
    if not row["batches"]:
        return {"p50": None, "times_teacher": None, "peak": None, "cpu_seconds": None, "cost": []}
    alone = row["batches"]["1"]
    return {"p50": alone["p50"], "times_teacher": alone["times_teacher"], "peak": row["rss"]["peaks"]["1"],
            "cpu_seconds": alone["cpu_seconds_per_row"], "cost": [{key: one[key] for key in ("machine", "currency", "assumption")}
                                                                  | {"per_million": one["per_million"]["1"]} for one in row["cost"]]}


def kept(arm: Mapping[str, Any]) -> dict[str, Any]:
    """Of an arm of a summary."""
    return {key: arm.get(key) for key in ("mean", "ci95", "retention", "verdict", "difference", "bytes", "parameters", "shipped")}


def point(run: Path) -> dict[str, Any]:
    """Size and quality of a student; of a series, the size of one of its runs and the quality over all."""
    over = read(run / "series.json").get("folds")
    arms = read(next(run.glob("*/summary.json" if over else "summary.json")))["arms"]
    found = {name: kept(arms[name]) | (over[name] if over else {}) for name in ("control", "distilled")}
    if over:
        found["distilled"] |= {"verdict": over["verdict"], "difference": over["difference"]}
    return {**found, "seeds": len(arms["distilled"]["seeds"])}


def pruned(run: Path) -> dict[str, Any] | None:
    """The pruned teacher: before it has learnt again (None of encoders, whose cuts are not asked before; of a series the mean of its
    runs), and recovered with and without the whole one."""
    if not finished(run):
        return None
    folds = [read(one)["pruned"]["value"] for one in run.glob("*/details.json")]
    start = {"value": sum(folds) / len(folds), "ci95": None} if folds else read(run / "details.json").get("pruned")
    return {"start": start, **point(run)}


def in_8_bits(run: Path, method: str) -> dict[str, Any]:
    """The teacher itself in 8 bits, as `understudy export RUN onnx_int8 --of teacher` makes it, compared with itself in float."""
    try:
        found = export_teacher(run, "onnx_int8", {"method": method}, Given())
        return {"bytes": found["bytes"], "parity": found["parity"], "method": found["method"], "reason": ""}
    except (GateError, RecipeError) as error:
        return {"bytes": None, "parity": getattr(error, "parity", None), "method": "", "reason": str(error)}


def blocks(found: Mapping[str, Any]) -> dict[str, str]:
    """Mark -> what stands there."""
    jobs = found.get("jobs", {})
    return {"goals": ship_page.goals(jobs, {name: job.title for name, job in JOBS.items()}), "parts": ship_page.parts(jobs),
            "sizes": ship_page.sizes(jobs), "arms": ship_page.arms(jobs),
            "speakers": ship_page.speakers(jobs.get("spoken_digits", {}).get("series", {}))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?")
    parser.add_argument("--run", type=Path, nargs=2, metavar=("DATA", "ENCODER"))
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--machine", default="a machine that nobody described")
    options = parser.parse_args()
    if options.run:
        run_all(options.runs, *options.run, options.only)
    elif options.runs:
        before = newest("ship")
        jobs = {name: together(before.get("jobs", {}).get(name, {}), options.runs, name, job) for name, job in JOBS.items()}
        jobs = {name: found for name, found in jobs.items() if "models" in found}
        print(keep("ship", options.machine, {"jobs": jobs}).relative_to(ROOT))
    if not options.run:
        PAGE.write_text(put(PAGE.read_text(encoding="utf-8"), blocks(newest("ship"))), encoding="utf-8")


if __name__ == "__main__":
    main()
