"""Every method of distillation on CIFAR-10, each against its own control: `python benchmarks/methods_cifar10.py DATA --runs RUNS`.

DATA holds cifar10/ (sheets of all 50,000 training and the first 1,000 test images) and cifar10_resnets/ (published weights). A ResNet-56
with published weights teaches a ResNet-8, and, for eight named methods, a small MobileNetV2 and a VGG-8-like net: the first 10,000 training
images, two stored views (crop and flip), stored layers, three seeds, the same steps for every arm. The teacher has seen all 50,000
training images, so what is kept of it is told on the 1,000 exact test images alone; verdicts are told on those and on 6,000 rows: these and
the last 5,000 training images, which no student has seen.

Terms that match layers or relations are weighed by `balance: gradnorm` (each has as much of the first gradient as the labels), MGD and
all others by the weights written below. Killed, it goes on where it was. `--collect FILE` writes what is finished;
docs/make_methods_cifar10.py makes the page from it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

SEEDS, VALIDATION, TRAIN, HELD_OUT, EXACT = 3, 1000, 10_000, 5000, 1000
CE = {"kind": "labels.CrossEntropy"}


def soft(**fields: Any) -> list[dict[str, Any]]:
    return [{"kind": "logits.SoftTargets", "temperature": 4.0, "weight": 0.9, **fields}, {**CE, "weight": 0.1}]


def term(kind: str, weight: Any = 1.0, labels: float = 1.0, **fields: Any) -> list[dict[str, Any]]:
    return [{"kind": kind, "weight": weight, **fields}, *([{**CE, "weight": labels}] if labels else [])]


NAMED: dict[str, list[dict[str, Any]]] = {
    "KD": soft(),
    "DKD": term("logits.Decoupled", {"start": 0.2, "end": 1.0}),
    "DIST": term("logits.DIST"),
    "Hint": term("features.Hint"),
    "AT": term("features.AttentionTransfer"),
    "NST": term("features.SimilarityOfNeurons"),
    "RKD": term("relations.DistanceAngle"),
    "CRD": term("relations.CRD"),
}
MORE: dict[str, list[dict[str, Any]]] = {
    "SP": term("relations.SimilarityPreserving"),
    "PKT": term("relations.ProbabilisticTransfer"),
    "CC": term("relations.CorrelationCongruence"),
    "ICKD": term("relations.ICKD"),
    "VID": term("features.VariationalInformation"),
    "FT": term("features.FactorTransfer"),
    "OFD": term("features.OverhaulDistillation"),
    "ReviewKD": term("features.ReviewKD"),
    "AB": term("features.ActivationBoundaries"),
    "MGD": term("features.MGD", 4.3e-4),  # the authors' weight on the mean of the entries, 1.8, for 64 x 8 x 8
    "CWD": term("features.ChannelWise"),
    "CKA": term("features.CKA"),
    "FSP": term("features.FSP"),
    "MSE": term("logits.MSE", 0.1),
    "LSKD": term("logits.Standardized", 9.0, 0.1),
    "MLKD": term("logits.MultiLevel"),
    "MLKD, balanced": term("logits.MultiLevel"),
    "NormKD": term("logits.NormKD"),
    "TTM": term("logits.Transformed"),
    "Tf-KD": term("logits.VirtualTeacher", 0.9, 0.1),
    "CTKD": term("logits.CurriculumTemperature", 0.9, 0.1),
    "WKD-L": term("logits.Wasserstein"),
    "PS-KD": term("logits.Progressive", 1.0, 0.0),
    "BYOT (deep exits)": term("exits.DeepExits"),
    "DML (mutual)": term("logits.SoftTargets", 1.0, 1.0, temperature=1.0),
    "mean teacher": term("logits.SoftTargets", 1.0, 1.0, temperature=1.0),
    "born again": soft(),
    "TAKD (ResNet-20 between)": soft(),
    "KD + RKD": [*soft(), {"kind": "relations.DistanceAngle", "weight": 1.0}],
    "KD + Hint": [*soft(), {"kind": "features.Hint", "weight": 1.0}],
}
UNBALANCED = ("MGD",)
"""By hand: balanced, its generation block's own gradient is so large at this rate of learning that the term is NaN after 156 steps."""
BALANCED = ("MLKD, balanced",)
"""Its sum over levels and temperatures is some thirty times the labels' loss: by its own weights the step is far too long."""
TEACHERS: dict[str, dict[str, Any]] = {
    "PS-KD": {"kind": "itself"},
    "Tf-KD": {"kind": "itself"},
    "BYOT (deep exits)": {"kind": "itself"},
    "DML (mutual)": {"kind": "peers", "count": 2},
    "mean teacher": {"kind": "averaged", "decay": 0.99},
    "born again": {"kind": "generations", "count": 1},
}
PAIRS: dict[str, dict[str, Any]] = {
    "resnet8": {"model": {"arch": "resnet", "depth": 8}, "precision": "bfloat16"},
    "mobilenetv2": {"model": {"arch": "mobilenetv2", "width": 0.25}, "precision": "float32"},
    "vgg8": {"model": {"arch": "vgg", "depth": 8, "width": 16}, "precision": "bfloat16"},
}
FAMILIES = {"features": "feature", "relations": "relation", "logits": "response", "exits": "online, self or a chain"}


def family(method: str) -> str:
    """What is matched; or when the teacher teaches, where that is what the method is about."""
    first, *others = [one["kind"].split(".")[0] for one in {**NAMED, **MORE}[method] if not one["kind"].startswith("labels.")]
    if method in TEACHERS or method.startswith("TAKD"):
        return FAMILIES["exits"]
    return "several terms" if others else FAMILIES[first]


def tasks() -> list[tuple[str, str]]:
    """The named methods of the two quick pairs first, so that a run that is cut short has whole small tables."""
    named = {pair: [(pair, method) for method in NAMED] for pair in PAIRS}
    return named["resnet8"] + named["vgg8"] + [("resnet8", method) for method in MORE] + named["mobilenetv2"]


def examples(data: Path) -> Any:
    """10,000 training, 1,000 validation and 6,000 test rows, the 1,000 exact test images last."""
    import numpy as np

    from understudy.datasets.images import Dataset

    found = Dataset(
        path=str(data / "cifar10"), sheets="lossless_train_*.webp", labels="labels_train.u8", test_sheets="lossless_test_*.webp",
        test_labels="labels_test_first1000.u8", classes="classes.txt", tile=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    ).load()  # fmt: skip
    test = np.flatnonzero(found.split == "test")[:EXACT]
    train = np.flatnonzero(found.split != "test")
    rows = np.concatenate([train[:TRAIN], train[40_000 : 40_000 + VALIDATION], train[-HELD_OUT:], test])
    chosen = found.subset(rows)
    parts = ["train"] * TRAIN + ["validation"] * VALIDATION + ["test"] * (HELD_OUT + EXACT)
    import dataclasses

    return dataclasses.replace(chosen, split=np.array(parts))


def recipe(pair: str, method: str, data: Path, epochs: float) -> dict[str, Any]:
    """The recipe of one method for one student, as a plain tree."""
    objective = {**NAMED, **MORE}[method]
    inside = any(one["kind"].split(".")[0] in ("features", "relations") for one in objective)
    balanced = method in BALANCED or (inside and method not in UNBALANCED)
    weights = data / "cifar10_resnets" / "resnet56-cifar10.safetensors"
    fixed = {"kind": "local", "model": {"arch": "resnet", "depth": 56}, "weights": str(weights), "rights": {"terms": "allowed"}}
    teacher = TEACHERS.get(method, fixed)
    training = {
        "epochs": epochs, "batch_size": 64, "optimizer": "sgd", "lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "warmup": 0.1,
        "seeds": SEEDS, "threads": 1,
        "precision": PAIRS[pair]["precision"], "memory_format": "channels_last", "compile": False,
        "balance": "gradnorm" if balanced else "none",
    }  # fmt: skip
    if method.startswith("TAKD"):
        plain = {key: value for key, value in training.items() if key not in ("seeds", "threads", "balance")}
        teacher = {"kind": "assistants", "of": fixed, "through": [{"model": {"arch": "resnet", "depth": 20}, "train": plain}]}
    name = "".join(letter if letter.isalnum() else "-" for letter in method).strip("-")
    return {
        "name": f"{pair}-{name}", "data": {"kind": "given", "split": {}, "augment": {"crop": 4, "flip": True, "views": 2}},
        "teacher": teacher, "student": {"model": PAIRS[pair]["model"]}, "objective": objective, "training": training,
        "metric": "accuracy", "export": [],
    }  # fmt: skip


def work(queue: Any, data: Path, runs: Path, epochs: float) -> None:
    """Run tasks until there are none; a failure is written down and the next one is taken."""
    import torch

    from understudy import pipeline
    from understudy.recipe import load
    from understudy.stages.prepare import Given

    torch.set_num_threads(1)
    given = Given(examples=examples(data))
    while (task := queue.get()) is not None:
        pair, method = task
        tree = load(recipe(pair, method, data, epochs))
        begun = time.time()
        try:
            found = pipeline.run(tree, given=given, options=pipeline.Options(runs=runs))
            print(f"{pair} {method}: {time.time() - begun:.0f} s, {found.verdict}", flush=True)
        except Exception as error:  # one method that fails must not end the others
            traceback.print_exc()
            print(f"{pair} {method}: FAILED {type(error).__name__}: {error}", flush=True)


def run(data: Path, runs: Path, epochs: float, workers: int, only: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    wanted = [(pair, method) for pair, method in tasks() if not only or method in only or pair in only]
    for task in [*wanted, *[None] * workers]:
        queue.put(task)
    pool = [context.Process(target=work, args=(queue, data, runs, epochs)) for _ in range(workers)]
    for process in pool:
        process.start()
    for process in pool:
        process.join()


def collect(data: Path, runs: Path, epochs: float) -> dict[str, Any]:
    """Every finished run's scores, and the verdicts over all methods of a pair (Holm), on 6,000 and on the 1,000 exact rows."""
    import numpy as np
    from safetensors.numpy import load_file

    from understudy.evaluation.compare import mean_interval, verdicts
    from understudy.evaluation.retention import retention
    from understudy.stages.machine import hardware

    labels = examples(data).labels[-(HELD_OUT + EXACT) :]
    finished = [task for task in tasks() if (runs / recipe(*task, data, epochs)["name"] / "summary.json").exists()]
    found: dict[str, Any] = {
        "when": datetime.date.today().isoformat(), "machine": hardware()["words"], "epochs": epochs, "seeds": SEEDS, "train": TRAIN,
        "pairs": {}, "unfinished": [list(task) for task in tasks() if task not in finished],
    }  # fmt: skip
    for pair in PAIRS:
        arms, about, control, teacher = {}, {}, None, None
        for at, method in tasks():
            folder = runs / recipe(pair, method, data, epochs)["name"]
            if (pair, method) not in finished or at != pair:
                continue

            def right(arm: str, folder: Path = folder) -> np.ndarray:
                seeds = sorted((folder / "arms" / arm).iterdir())
                return np.stack([load_file(seed / "outputs.safetensors")["test"].argmax(1) == labels for seed in seeds]).astype(float)

            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            details = json.loads((folder / "details.json").read_text(encoding="utf-8"))
            arms[method], control = right("distilled"), right("control")
            if method == "KD":
                teacher = summary["teacher"]
            timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text(encoding="utf-8").splitlines()]
            weights = next((note for note in details["notes"] if note.startswith("Weights after balance")), "")
            about[method] = {
                "seconds": round(sum(row["seconds"] for row in timing if row["stage"] == "train")), "weights": weights,
                "family": family(method),
                "parameters": summary["arms"]["distilled"]["parameters"],
            }  # fmt: skip
        if control is None:
            continue
        whole, exact = verdicts(control, arms), verdicts(control[:, -EXACT:], {name: arm[:, -EXACT:] for name, arm in arms.items()})
        said = teacher_right(runs / recipe(pair, "KD", data, epochs)["name"], labels)
        rows = {}
        for method, arm in arms.items():
            kept = retention(arm[:, -EXACT:], said[-EXACT:]) if said is not None else None
            rows[method] = {
                **about[method],
                "seeds": [round(float(one), 4) for one in arm.mean(1)], "mean": float(arm.mean()), "ci95": mean_interval(arm),
                "all": judged(whole[method]), "exact": judged(exact[method]), "exact_mean": float(arm[:, -EXACT:].mean()),
                "retention": None if kept is None else {"value": kept.value, "ci95": kept.ci95},
            }  # fmt: skip
        found["pairs"][pair] = {
            "teacher": teacher,
            "control": {
                "mean": float(control.mean()), "ci95": mean_interval(control), "seeds": control.mean(1).tolist(),
                "exact_mean": float(control[:, -EXACT:].mean()),
            },
            "methods": rows,
        }  # fmt: skip
    return found


def teacher_right(run: Path, labels: Any) -> Any:
    """(n,) which test rows the teacher gets right, computed from the run's stored answers by the report's own path."""
    import numpy as np

    details = run / "details.json"
    if not details.exists():
        return None
    from understudy.store.reader import Reader

    stores = sorted((run.parent / "_cache").glob("store-*"))
    for store in stores:
        reader = Reader(store)
        if reader.header.members == 1 and reader.header.classes == 10:
            ids = [str(name) for name in examples(Path(os.environ["METHODS_DATA"])).ids[-(HELD_OUT + EXACT) :]]
            rows = reader.table(ids, 0)["logits"].numpy()
            answer = rows.argmax(1) == labels
            if answer[-EXACT:].mean() > 0.9:  # the ResNet-56, not one of the students that taught
                return answer.astype(np.float64)
    return None


def judged(one: Any) -> dict[str, Any]:
    return {
        "verdict": one.word,
        "difference": one.difference,
        "ci95": one.ci95,
        "p_holm": one.p_value,
        "smallest_visible": one.smallest_visible,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="*", default=[], help="methods or pairs")
    parser.add_argument("--collect", type=Path, metavar="JSON")
    options = parser.parse_args()
    os.environ["METHODS_DATA"] = str(options.data)
    if options.collect is None:
        run(options.data, options.runs, options.epochs, options.workers, options.only)
        return
    text = json.dumps(collect(options.data, options.runs, options.epochs), indent=1)
    options.collect.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
