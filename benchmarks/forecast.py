"""How often the interval of `understudy advise` holds: `python benchmarks/forecast.py measure|fit|score|page --data FOLDER --runs FOLDER`.

measure: pilots on 5 and 2.5 % of the training rows and the full run, for every setting below (resumable; ten minutes of one core).
fit: the constants of `understudy.evaluation.forecast`, from the calibration settings alone, and how they do there when each setting in turn
is left out. score: the held-out settings of the second round against the constants that stand in that file.
Writes benchmarks/results/<date>-<machine in words>-forecast.json.

Which settings calibrate and which are held out was written here before any of them was run. A held-out setting has another data set than
all calibration settings, or another teacher and another student than those on the same data set.

There were two rounds. In the first, HELD_OUT was judged by a law that CALIBRATION had given, and failed (the result file keeps that). Since
then both calibrate, and SECOND, written after that and before it was run, is what is held out.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import re
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

SHARE = 0.05
SEEDS, FULL_SEEDS = 3, 2
SOFT, STANDARD, SQUARES, RELATION = "logits.SoftTargets", "logits.Standardized", "logits.MSE", "relations.DistanceAngle"
"""The self-test refuses Standardized with two classes, and DistanceAngle for a linear student, whose layer is the input."""


def mlp(*hidden):
    return {"arch": "mlp", "hidden": list(hidden)}


def cnn(width):
    return {"arch": "cnn", "width": width}


TREES, FOREST = "HistGradientBoostingClassifier", "RandomForestClassifier"
LINEAR = {"arch": "linear"}
CALIBRATION = {
    "mnist, mlp to mlp": ("mnist", 6000, mlp(256, 256), mlp(16), (SOFT, STANDARD), 20),
    "mnist, cnn to linear": ("mnist", 3000, cnn(8), LINEAR, (SOFT, STANDARD), 20),
    "digits, cnn to mlp": ("digits", None, cnn(16), mlp(24), (SOFT, RELATION), 40),
    "spambase, mlp to mlp": ("spambase", None, mlp(128, 128), mlp(8), (SOFT, SQUARES), 25),
    "spambase, trees to linear": ("spambase", None, TREES, LINEAR, (SOFT, SQUARES), 25),
    "adult, trees to mlp": ("adult", 8000, TREES, mlp(16), (SOFT, SQUARES), 12),
    "sms, mlp to mlp": ("sms", None, mlp(64), mlp(8), (SOFT, SQUARES), 20),
    "speech, cnn to mlp": ("speech", None, cnn(16), mlp(32), (SOFT, STANDARD), 40),
    "subj, mlp to mlp": ("subj", 4000, mlp(64), mlp(8), (SOFT, RELATION), 20),
    "subj, trees to linear": ("subj", 4000, TREES, LINEAR, (SOFT, SQUARES), 20),
    "clinc (10 domains), mlp to mlp": ("clinc", 6000, mlp(128), mlp(16), (SOFT, STANDARD), 20),
    "speech, forest to linear": ("speech", None, FOREST, LINEAR, (SOFT, STANDARD), 30),
    "digits, forest to linear": ("digits", None, FOREST, LINEAR, (SOFT, STANDARD), 40),
    "adult, forest to mlp": ("adult", 8000, FOREST, mlp(32), (SOFT, SQUARES), 12),
}
HELD_OUT = {
    "mnist, forest to small cnn": ("mnist", 3000, FOREST, cnn(2), (SOFT, STANDARD), 12),
    "digits, trees to small cnn": ("digits", None, TREES, cnn(4), (SOFT, STANDARD), 30),
    "adult, mlp to linear": ("adult", 8000, mlp(64, 64), LINEAR, (SOFT, SQUARES), 12),
    "breast cancer, mlp to mlp": ("breast_cancer", None, mlp(64), mlp(4), (SOFT, SQUARES), 60),
    "german credit, forest to mlp": ("german", None, FOREST, mlp(8), (SOFT, SQUARES), 40),
    "cifar10 at 16 pixels, cnn to mlp": ("cifar10", 4000, cnn(16), mlp(48), (SOFT, STANDARD), 15),
    "sst2, mlp to mlp": ("sst2", None, mlp(64), mlp(8), (SOFT, RELATION), 15),
    "sms, forest to linear": ("sms", None, FOREST, LINEAR, (SOFT, SQUARES), 20),
    "speech, mlp to small cnn": ("speech", None, mlp(128), cnn(4), (SOFT, STANDARD), 20),
}
SECOND = {
    "mnist, wide mlp to deep mlp": ("mnist", 4000, mlp(400), mlp(32, 32), (SOFT, STANDARD), 12),
    "digits, mlp to deep mlp": ("digits", None, mlp(128), mlp(12, 12), (SOFT, STANDARD), 30),
    "cifar10 at 16 pixels, forest to mlp": ("cifar10", 4000, FOREST, mlp(24), (SOFT, STANDARD), 10),
    "spambase, forest to mlp": ("spambase", None, FOREST, mlp(16), (SOFT, SQUARES), 20),
    "breast cancer, trees to linear": ("breast_cancer", None, TREES, LINEAR, (SOFT, SQUARES), 60),
    "german credit, mlp to linear": ("german", None, mlp(64), LINEAR, (SOFT, SQUARES), 40),
    "subj, forest to mlp": ("subj", 4000, FOREST, mlp(16), (SOFT, SQUARES), 15),
    "sst2, forest to linear": ("sst2", 5000, FOREST, LINEAR, (SOFT, SQUARES), 15),
    "sms, trees to mlp": ("sms", None, TREES, mlp(16), (SOFT, SQUARES), 15),
    "clinc (10 domains), forest to deep mlp": ("clinc", 6000, FOREST, mlp(24, 24), (SOFT, STANDARD), 15),
}
"""name: data set, rows before the split (None: all), teacher, student, objectives, epochs."""


def words(lines, count=300):
    """(n, count) 0 or 1: whether a line has each of the commonest words."""
    rows = [set(re.findall(r"[a-z']+", line.lower())) for line in lines]
    known = [word for word, _ in Counter(word for row in rows for word in sorted(row)).most_common(count)]
    return np.array([[word in row for word in known] for row in rows], dtype=np.float32)


def tsv(path):
    return [line.split("\t") for line in gzip.decompress(path.read_bytes()).decode("utf-8", "replace").split("\n") if line]


def texts(path, label, text, limit):
    from understudy.data import from_arrays

    rows = tsv(path)
    if limit:
        rows = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))[:limit]]
    inputs = words([row[text] for row in rows])
    kept = np.sort(np.unique(inputs, axis=0, return_index=True)[1])  # the self-test refuses test rows that are copies of training rows
    return from_arrays(inputs[kept], [rows[at][label].strip() for at in kept], kind="vector")


def clinc(folder, limit):
    """The ten domains of its intents, as words."""
    from understudy.data import from_arrays

    domains = json.loads((folder / "domains.json").read_text())
    domain = {intent: name for name, intents in domains.items() for intent in intents}
    found = json.loads(gzip.decompress((folder / "data_full.json.gz").read_bytes()))["train"]
    rows = [found[at] for at in np.random.default_rng(0).permutation(len(found))[:limit]]
    inputs = words([text for text, _ in rows])
    kept = np.sort(np.unique(inputs, axis=0, return_index=True)[1])
    return from_arrays(inputs[kept], [domain[rows[at][1]] for at in kept], kind="vector")


def speech(folder):
    """(n, 16, 24) log energies: 16 bands of equal width up to 4 kHz, 24 spans of equal length."""
    import io
    import tarfile
    import wave

    from understudy.data import from_arrays

    inputs, labels, parts, names = [], [], [], []
    with tarfile.open(folder / "recordings.tar.xz") as archive:
        for member in sorted(archive.getmembers(), key=lambda one: one.name):
            if not member.name.endswith(".wav"):
                continue
            with wave.open(io.BytesIO(archive.extractfile(member).read())) as file:
                sound = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float64) / 32768
            size = 256
            sound = np.pad(sound, (0, max(0, 24 * 64 + size - len(sound))))
            starts = np.linspace(0, len(sound) - size, 72).astype(int)
            power = np.abs(np.fft.rfft(np.stack([sound[at : at + size] for at in starts]) * np.hanning(size)))[:, 1:] ** 2
            inputs.append(np.log(power.reshape(24, 3, 16, 8).mean(axis=(1, 3)) + 1e-6).T)
            digit, _, index = Path(member.name).stem.split("_")
            names.append(Path(member.name).stem)
            labels.append(digit)
            parts.append("test" if int(index) < 5 else "train")
    array = np.array(inputs)
    array = (255 * (array - array.min()) / (array.max() - array.min())).astype(np.uint8)
    return from_arrays(array, labels, ids=names, split=parts)


def cifar(folder, limit):
    from PIL import Image

    from understudy.data import from_arrays

    def sheets(part, count):
        found = []
        for number in range(count):
            sheet = np.array(Image.open(folder / f"lossless_{part}_{number:02d}.webp").convert("RGB"))
            found.append(sheet.reshape(25, 32, 40, 32, 3).swapaxes(1, 2).reshape(1000, 32, 32, 3))
        return np.concatenate(found)

    images = np.concatenate([sheets("train", limit // 1000), sheets("test", 1)])
    small = images.reshape(-1, 16, 2, 16, 2, 3).mean(axis=(2, 4)).round().astype(np.uint8)
    seen, test = (np.fromfile(folder / name, np.uint8) for name in ("labels_train.u8", "labels_test_first1000.u8"))
    labels = np.concatenate([seen[:limit], test])
    return from_arrays(small, labels.astype(int), split=["train"] * limit + ["test"] * 1000)


def data_of(name, limit, data, scratch):
    """(the recipe's data section, Examples or None)."""
    split = {"validation": 0.1, "test": 0.3}
    given = {"kind": "given", "split": split}
    if name in ("digits", "breast_cancer"):
        return {"kind": "builtin", "name": name, "split": split}, None
    if name == "mnist":
        return {"kind": "idx", "path": str(data / "mnist"), "limit": limit, "test_limit": 2000, "split": {"validation": 0.1}}, None
    if name == "adult":
        return {"kind": "table", "path": str(data / "adult/adult.csv.gz"), "label": "income", "limit": limit, "split": split}, None
    if name in ("spambase", "german"):
        source = {"spambase": "spambase/spam.data.gz", "german": "german_credit/german.data.gz"}[name]
        path = scratch / f"{name}.csv"
        lines = (b",".join(line.split()) for line in gzip.decompress((data / source).read_bytes()).splitlines())
        path.write_bytes(b"\n".join({line.rpartition(b",")[0]: line for line in lines}.values()))  # no row twice
        return {"kind": "table", "path": str(path), "label": -1, "header": False, "split": split}, None
    if name == "sms":
        return given, texts(data / "sms_spam/SMSSpamCollection.gz", 0, 1, limit)
    if name == "subj":
        return given, texts(data / "subj/subj.tsv.gz", 1, 0, limit)
    if name == "sst2":
        return given, texts(data / "sst2/train.tsv.gz", 1, 0, limit)
    if name == "clinc":
        return given, clinc(data / "clinc150", limit)
    if name == "speech":
        return {"kind": "given", "split": {"validation": 0.1}}, speech(data / "fsdd4")
    return {"kind": "given", "split": {"validation": 0.1}}, cifar(data / "cifar10", limit)


def recipe_of(number, setting, section):
    from understudy import recipe

    _, _, teacher, student, _, epochs = setting
    if isinstance(teacher, str):
        options = {"max_iter": 60} if teacher == TREES else {"n_estimators": 60}
        taught = {"kind": "predictor", "estimator": teacher, "options": options, "rights": {"terms": "own"}}
    else:
        training = {"epochs": 12 if teacher["arch"] == "cnn" else 20, "lr": 2e-3, "batch_size": 64}
        taught = {"kind": "local", "model": teacher, "train": training, "rights": {"terms": "own"}}
    return recipe.load({
        "name": f"setting-{number:02d}", "data": section, "teacher": [taught], "student": {"model": student},
        "objective": [{"kind": SOFT, "temperature": 2.0, "weight": 0.9}, {"kind": "labels.CrossEntropy", "weight": 0.1}],
        "training": {"epochs": epochs, "batch_size": 64, "lr": 5e-3, "seeds": SEEDS, "threads": 1}, "export": ["safetensors"],
    })  # fmt: skip


def figures(found):
    """What the forecast may look at, and what it is judged by: means, their intervals, verdicts."""
    keep = ("mean", "ci95", "seeds")
    control = {key: found["control"][key] for key in keep}
    rows = {row["name"]: {key: row[key] for key in (*keep, "verdict", "difference")} for row in found["rows"]}
    return {"rows": found["conditions"]["training_rows"], "steps": found["conditions"]["steps"], "control": control, "objectives": rows}


def measure(options, document, path):
    from understudy import comparison
    from understudy.pipeline import Options
    from understudy.stages import pilot
    from understudy.stages.prepare import Given

    for number, (name, setting) in enumerate((CALIBRATION | HELD_OUT | SECOND).items()):
        part = "calibration" if name in CALIBRATION else "held out" if name in HELD_OUT else "second"
        entry = document["settings"].get(name, {})
        if {"half", "pilot", "full"} <= set(entry) or options.part not in (None, part):
            continue
        print(name, flush=True)
        begun, cpu = time.perf_counter(), time.process_time()
        section, examples = data_of(setting[0], setting[1], options.data, options.runs)
        whole, given = recipe_of(number, setting, section), Given(examples=examples)
        objectives = list(setting[4])
        small = pilot.planned(whole, objectives, SHARE, SEEDS, given, lambda one, data: None).recipe
        half = small.data.transfer.model_copy(update={"examples": small.data.transfer.examples / 2})
        half = small.model_copy(update={"name": "half", "data": small.data.model_copy(update={"transfer": half})})
        entry |= {"part": part, "data": setting[0], "teacher": setting[2], "student": setting[3]}
        for key, one, seeds in (("half", half, SEEDS), ("pilot", small, SEEDS), ("full", whole, FULL_SEEDS)):
            if key in entry:
                continue
            chosen = Options(runs=options.runs / f"{number:02d}", cache=options.runs / "cache")
            made = comparison.compare(one, objectives, seeds, given=given, options=chosen, jobs=1)
            entry[key] = figures(made.found)
            entry |= {"metric": made.found["metric"], "examples": made.found["examples"], "teacher_value": made.found["teacher"]["value"]}
        spent = {"wall": time.perf_counter() - begun, "cpu": time.process_time() - cpu}
        entry |= {key: round(entry.get(key, 0) + seconds, 1) for key, seconds in spent.items()}
        document["settings"][name] = entry
        path.write_text(json.dumps(document, indent=1) + "\n")
        print(f"  {entry['cpu']:.0f} s of cpu, {entry['wall']:.0f} s", flush=True)


def pairs_of(document, *parts):
    """[(setting, objective or "control", what the pilot shows of it, E of the full run, verdicts in pilot and full run)]."""
    from understudy.evaluation import forecast

    found = []
    for name, entry in document["settings"].items():
        if entry["part"] not in parts:
            continue
        objectives = list(entry["pilot"]["objectives"])

        def arm(stage, objective, entry=entry):
            return entry[stage]["control"] if objective == "control" else entry[stage]["objectives"][objective]

        def wrong(value, entry=entry):
            return forecast.wrong(value, entry["examples"])

        arms = ["control", *objectives]
        pilot, half = ([wrong(arm(stage, one)["mean"]) for one in arms] for stage in ("pilot", "half"))
        for one, seen, slope in zip(arms, pilot, forecast.slopes(pilot, half), strict=True):
            mean, (low, high) = arm("pilot", one)["mean"], arm("pilot", one)["ci95"]
            growth, noise = entry["full"]["rows"] / entry["pilot"]["rows"], max(high - mean, mean - low) / 1.96
            verdicts = [arm(stage, one).get("verdict") for stage in ("pilot", "full")]
            shown = forecast.Seen(wrong(entry["teacher_value"]), seen, slope, growth, noise)
            found.append((name, one, shown, wrong(arm("full", one)["mean"]), verdicts))
    return found


def law_of(pairs, control):
    from understudy.evaluation import forecast

    chosen = [pair for pair in pairs if (pair[1] == "control") == control]
    return forecast.fit([pair[2] for pair in chosen], [pair[3] for pair in chosen], len({pair[0] for pair in chosen}))


def judged(pairs, laws):
    """One row a pair: forecast, interval, truth."""
    from understudy.evaluation import forecast

    rows = []
    for name, objective, seen, full, verdicts in pairs:
        found = forecast.forecast(seen, laws(name)["control" if objective == "control" else "taught"])
        truth = forecast.retention(full, seen.teacher)
        rows.append({
            "setting": name, "objective": objective, "pilot": round(forecast.retention(seen.pilot, seen.teacher), 4),
            "predicted": round(found.value, 4), "ci95": [round(end, 4) for end in found.ci95], "full": round(truth, 4),
            "covered": found.ci95[0] <= truth <= found.ci95[1], "verdicts": verdicts,
        })  # fmt: skip
    return rows


def summary(rows):
    taught, control = ([row for row in rows if (row["objective"] == "control") == wanted] for wanted in (False, True))
    helped = [row for row in taught if row["verdicts"][0] == "helps"]
    figures = {}
    for name, some in (("taught", taught), ("control", control)):
        widths, off = [row["ci95"][1] - row["ci95"][0] for row in some], [row["full"] - row["predicted"] for row in some]
        figures[name] = {
            "pairs": len(some), "covered": sum(row["covered"] for row in some), "median_width": round(float(np.median(widths)), 4),
            "median_error": round(float(np.median(np.abs(off))), 4),
            "root_mean_square_error": round(float(np.sqrt(np.mean(np.square(off)))), 4),
        }  # fmt: skip
    figures["helps_in_pilot"] = len(helped)
    figures["of_those_in_full_run"] = dict(Counter(row["verdicts"][1] for row in helped))
    figures["full_run_without_help_in_pilot"] = dict(Counter(row["verdicts"][1] for row in taught if row not in helped))
    return figures


def show(rows):
    for row in rows:
        low, high = row["ci95"]
        print(f"{row['setting']:34s} {row['objective']:24s} pilot {row['pilot']:.3f}  {row['predicted']:.3f} [{low:.3f}, {high:.3f}]  "
              f"full {row['full']:.3f} {'' if row['covered'] else 'MISSED'}")  # fmt: skip
    print(json.dumps(summary(rows), indent=1))


def fit(document):
    """The laws of all settings but the second round's; the same with each setting left out in turn judges them there."""
    pairs = pairs_of(document, "calibration", "held out")
    document["laws"] = {name: asdict(law_of(pairs, name == "control")) for name in ("taught", "control")}
    without = {
        name: {kind: law_of([pair for pair in pairs if pair[0] != name], kind == "control") for kind in ("taught", "control")}
        for name in {pair[0] for pair in pairs}
    }
    rows = judged(pairs, without.__getitem__)
    show(rows)
    document["calibration"] = {"summary": summary(rows), "rows": rows}
    print(json.dumps(document["laws"], indent=1))


def score(document):
    """The held-out settings, with the constants that stand in `understudy.evaluation.forecast`."""
    from understudy.evaluation import forecast

    rows = judged(pairs_of(document, "second"), lambda name: forecast.LAWS)
    show(rows)
    document["second_round"] = {"summary": summary(rows), "rows": rows, "full_run_median_width": full_width(document, "second")}


def full_width(document, *parts):
    """Median width of the full runs' own 95 % intervals, as retention: no forecast of what is measured can be much narrower."""
    widths = []
    for entry in document["settings"].values():
        if entry["part"] in parts:
            widths += [(arm["ci95"][1] - arm["ci95"][0]) / entry["teacher_value"] for arm in entry["full"]["objectives"].values()]
    return round(float(np.median(widths)), 4)


def page(document):
    """The table of docs/forecast.md: every held-out pair of the second round."""
    lines = ["| pair | objective | pilot | predicted | 95 % interval | full run | inside |", "|---|---|--:|--:|---|--:|---|"]
    for row in document["second_round"]["rows"]:
        low, high = row["ci95"]
        seen = f"{100 * row['pilot']:.1f} % | {100 * row['predicted']:.1f} %"
        figures = f"{seen} | {100 * low:.1f} to {100 * high:.1f} % | {100 * row['full']:.1f} %"
        objective = "control" if row["objective"] == "control" else f"`{row['objective']}`"
        lines.append(f"| {row['setting']} | {objective} | {figures} | {'yes' if row['covered'] else '**no**'} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "fit", "score", "page"))
    parser.add_argument("--data", type=Path, help="the folder of data sets")
    parser.add_argument("--runs", type=Path, help="where runs lie, and data sets that have to be written out")
    parser.add_argument("--part", choices=("calibration", "held out", "second"), help="only these settings; by default all")
    parser.add_argument("--result", type=Path, help="the result file; by default one of today and this machine")
    options = parser.parse_args()
    from understudy.stages.machine import hardware

    machine = hardware()["words"]
    slug = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    path = options.result or Path(__file__).parent / "results" / f"{datetime.date.today()}-{slug}-forecast.json"
    document = {"machine": machine, "load_average": os.getloadavg()[0], "share": SHARE, "seeds": [SEEDS, FULL_SEEDS], "settings": {}}
    if path.is_file():
        document = json.loads(path.read_text())
    if options.what == "measure":
        options.runs.mkdir(parents=True, exist_ok=True)
        measure(options, document, path)
    else:
        {"fit": fit, "score": score, "page": lambda found: print(page(found), end="")}[options.what](document)
        path.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
