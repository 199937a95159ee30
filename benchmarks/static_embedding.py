"""Static sentence embeddings of one teacher: ours without data, ours tuned, and Model2Vec, at equal dimensions in one run.

    OMP_NUM_THREADS=1 PYTHONPATH=src python benchmarks/static_embedding.py --teacher FOLDER --data DATA [--cache FOLDER]

Needs `pip install model2vec` (with its distill extra) beside this package. Spearman's correlation of cosines with human scores on the test
part of stsb_open, with the jackknife's interval over pairs; differences are paired. The test part is read at the very end; pooling,
weighting, the PCA and the numbers of the tuning were chosen on the train and dev parts. No text of the dev and test parts is tuned on.
Seconds are CPU seconds of one thread (neighbours who take the core do not count), wall seconds stand beside them. Rates are from
interleaved rounds. --cache keeps the teacher's vectors for the next time; only those that are computed are timed.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata

from understudy import static_embedding
from understudy.evaluation.compare import mean_interval
from understudy.static_embedding import StaticEmbedding
from understudy.students import sentences, static, static_tuning

HERE = Path(__file__).resolve().parent
DIMENSIONS = (256, 128, 64)
TUNING = {"epochs": 4, "lr": 1e-3, "weight_lr": 3e-3, "batch": 256}
IN_DOMAIN = {**TUNING, "epochs": 8}
TEACHER_LENGTH = 64


def lines(path: Path) -> list[str]:
    return gzip.open(path, "rt", encoding="utf-8").read().split("\n")


def sts(data: Path, part: str) -> tuple[list[str], list[str], np.ndarray]:
    rows = [line.split("\t") for line in lines(data / "stsb_open" / f"sts-{part}.tsv.gz") if line]
    return [row[5] for row in rows], [row[6] for row in rows], np.array([float(row[4]) for row in rows])


def unlabelled(data: Path) -> list[str]:
    """Requests, films, Wikipedia and text messages; labels are dropped."""
    with gzip.open(data / "clinc150" / "data_full.json.gz", "rt", encoding="utf-8") as file:
        said = json.load(file)
    found = [row[0] for part in ("train", "oos_train") for row in said[part]]
    for name in ("sst2/train.tsv.gz", "subj/subj.tsv.gz"):
        found += [line.rsplit("\t", 1)[0] for line in lines(data / name)]
    for line in lines(data / "wikitext2_valid" / "valid.txt.gz"):
        if line.strip() and not line.strip().startswith("="):
            plain = line.replace(" @-@ ", "-").replace(" @,@ ", ",").replace(" @.@ ", ".").strip()
            found += [part.strip().replace(" <unk>", "") for part in re.split(r"(?<= [.!?]) ", plain) if len(part.split()) > 3]
    found += [line.split("\t", 1)[-1] for line in lines(data / "sms_spam" / "SMSSpamCollection.gz")]
    return list(dict.fromkeys(text.strip() for text in found if text.strip()))


class Teacher:
    """Its vectors of texts, kept in a folder between runs."""

    def __init__(self, folder: Path, cache: Path | None) -> None:
        self.folder, self.cache, self.known, self.seconds, self.computed = folder, cache, {}, 0.0, 0
        if cache is not None and (cache / "texts.json").is_file():
            self.known = dict(zip(json.loads((cache / "texts.json").read_text()), np.load(cache / "vectors.npy"), strict=True))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        missing = [text for text in dict.fromkeys(texts) if text not in self.known]
        if missing:
            began = time.process_time()
            self.known.update(zip(missing, sentences.vectors(self.folder, missing, length=TEACHER_LENGTH), strict=True))
            self.seconds, self.computed = self.seconds + time.process_time() - began, self.computed + len(missing)
            if self.cache is not None:
                self.cache.mkdir(parents=True, exist_ok=True)
                np.save(self.cache / "vectors.npy", np.stack(list(self.known.values())))
                (self.cache / "texts.json").write_text(json.dumps(list(self.known)))
        return np.stack([self.known[text] for text in texts])


def timed(work: Callable[[], object]) -> tuple[object, dict[str, float]]:
    cpu, wall = time.process_time(), time.perf_counter()
    found = work()
    return found, {"cpu_seconds": round(time.process_time() - cpu, 1), "wall_seconds": round(time.perf_counter() - wall, 1)}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def pseudo(cosines: np.ndarray, human: np.ndarray) -> np.ndarray:
    """(n,) jackknife pseudo-values of Spearman's correlation over pairs."""
    n, whole = len(human), spearman(cosines, human)
    return np.array([n * whole - (n - 1) * spearman(np.delete(cosines, row), np.delete(human, row)) for row in range(n)])


def unit(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def cut(made: static.Static, dimensions: int) -> static.Static:
    """The first columns: what `distil` gives for so many dimensions, because components are ordered."""
    table = np.ascontiguousarray(made.model.table[:, :dimensions])
    return replace(made, model=replace(made.model, table=table), components=made.components[:, :dimensions])


def rates(encoders: dict[str, Callable[[], Callable[[list[str]], object]]], texts: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Texts a CPU second of every encoder, each built anew for a round, in random order."""
    draw, found = random.Random(0), {name: [] for name in encoders}
    for _ in range(rounds + 1):
        for name in draw.sample(list(encoders), len(encoders)):
            encode = encoders[name]()
            began = time.process_time()
            encode(texts)
            found[name].append(len(texts) / (time.process_time() - began))
    return {name: {"median": round(statistics.median(values[1:])), "lowest": round(min(values[1:])), "highest": round(max(values[1:]))}
            for name, values in found.items()}  # the first round warms up


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--work", type=Path, default=Path("static_embedding_work"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--machine", default="2 shared virtual cores of an AMD EPYC with AVX-512 bf16, 24 GB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from model2vec import StaticModel
    from model2vec.distill import distill

    load, teacher = os.getloadavg(), Teacher(options.teacher, options.cache)
    arms: dict[str, Callable[[list[str]], np.ndarray]] = {}
    facts: dict[str, dict[str, object]] = {}
    ours_256: dict[str, StaticEmbedding] = {}

    for name, pooling in (("Model2Vec", "mean"), ("Model2Vec, pooling first", "first")):
        model, seconds = timed(partial(distill, str(options.teacher), pca_dims=256, pooling=pooling, quantize_to="float32"))
        folder = options.work / name.replace(", ", "-").replace(" ", "-")
        model.save_pretrained(folder)
        for size in DIMENSIONS:
            small = StaticModel.from_pretrained(folder, dimensionality=size)
            arms[f"{name} {size}"] = lambda texts, small=small: small.encode(texts, use_multiprocessing=False)
            facts[f"{name} {size}"] = {**seconds, "table_bytes": int(small.embedding.nbytes)}

    def add(name: str, made: StaticEmbedding, seconds: dict[str, float]) -> None:
        arms[f"{name} {made.dimensions}"] = made.encode
        facts[f"{name} {made.dimensions}"] = {**seconds, "table_bytes": int(made.table.nbytes)}
        if made.dimensions == 256:
            ours_256[name] = made

    plain, seconds = timed(lambda: static.distil(options.teacher, dimensions=256))
    for size in DIMENSIONS:
        add("ours, no data", cut(plain, size).model, seconds)

    salads, text = static_tuning.salads(plain), unlabelled(options.data)
    first, second, _ = sts(options.data, "train")
    domain = list(dict.fromkeys(first + second))
    runs = [("ours, tuned on word salads (no data)", salads, DIMENSIONS[:1], IN_DOMAIN),
            ("ours, tuned on other text", text, DIMENSIONS[:1], TUNING),
            ("ours, tuned on other text and salads", text + salads, DIMENSIONS, TUNING),
            ("ours, tuned on STS train sentences and salads", domain + salads, DIMENSIONS[:1], IN_DOMAIN)]
    for name, texts, sizes, how in runs:
        targets = teacher(texts)
        for size in sizes:
            tuned, seconds = timed(partial(static_tuning.tune, cut(plain, size), texts, targets, **how))
            add(name, tuned.static.model, {**seconds, "texts": len(texts), "held_out_loss": [round(x, 4) for x in tuned.held_out]})
            print(name, size, facts[f"{name} {size}"], flush=True)

    best = ours_256["ours, tuned on other text and salads"]
    sizes = {}
    for kind in ("float32", "float16", "int8"):
        folder = best.to(kind).save(options.work / f"ours-{kind}")
        sizes[kind], loaded = bytes_of(folder), static_embedding.load(folder)
        if kind != "float32":
            arms[f"ours, tuned on other text and salads, {kind} 256"] = loaded.encode
            facts[f"ours, tuned on other text and salads, {kind} 256"] = {"table_bytes": int(loaded.table.nbytes)}

    # from here on the test part
    left, right, human = sts(options.data, "test")
    dev_left, dev_right, dev_human = sts(options.data, "dev")
    arms["teacher"] = teacher
    scores = {}
    for name, encode in arms.items():
        a, b = unit(encode(left)), unit(encode(right))
        scores[name] = pseudo((a * b).sum(1), human)
        low, high = mean_interval(scores[name], -1, 1)
        c, d = unit(encode(dev_left)), unit(encode(dev_right))
        facts.setdefault(name, {}).update(spearman=round(spearman((a * b).sum(1), human), 4), ci95=[round(low, 4), round(high, 4)],
                                          dev=round(spearman((c * d).sum(1), dev_human), 4))
    for name in arms:
        size = name.rsplit(" ", 1)[-1]
        if name.startswith("ours"):
            for other in ("Model2Vec", "Model2Vec, pooling first"):
                difference = scores[name] - scores[f"{other} {size}"]
                low, high = mean_interval(difference, -2, 2)
                facts[name][f"minus {other}"] = {"difference": round(facts[name]["spearman"] - facts[f"{other} {size}"]["spearman"], 4),
                                                 "ci95": [round(low, 4), round(high, 4)]}

    speakers = list(dict.fromkeys(left + right + [line.rsplit("\t", 1)[0] for part in ("dev", "test")
                                                  for line in lines(options.data / "sst2" / f"{part}.tsv.gz") if line]))
    warm = static_embedding.load(options.work / "ours-float32")
    warm.encode(speakers)

    def theirs() -> Callable[[list[str]], object]:
        made = StaticModel.from_pretrained(options.work / "Model2Vec")
        return lambda texts: made.encode(texts, use_multiprocessing=False)

    speed = rates({
        "ours, freshly loaded": lambda: static_embedding.load(options.work / "ours-float32").encode,
        "ours, words seen before": lambda: warm.encode,
        "ours, int8, freshly loaded": lambda: static_embedding.load(options.work / "ours-int8").encode,
        "Model2Vec": theirs}, speakers, options.rounds)
    sample = speakers[:300]
    began = time.process_time()
    sentences.vectors(options.teacher, sample)
    speed["teacher (with loading)"] = {"median": round(len(sample) / (time.process_time() - began))}

    result = {
        "what": "Spearman's correlation on the test part of stsb_open (625 pairs: captions and headlines), jackknife interval over pairs; "
                "differences are paired; seconds of one thread; rates in texts a CPU second",
        "teacher": "all-MiniLM-L6-v2, 22.7 M parameters", "chosen_on": "stsb_open train and dev: pooling, PCA weighting, sif, tuning",
        "tuning_text": {"other text": len(text), "salads": len(salads), "STS train sentences": len(domain)}, "tuning": TUNING,
        "machine": options.machine, "python": platform.python_version(), "torch": torch.__version__,
        "model2vec": version("model2vec"), "numpy": np.__version__,
        "command": "python benchmarks/static_embedding.py --teacher FOLDER --data DATA", "arms": facts, "folder_bytes": sizes,
        "texts_a_cpu_second": speed,
        "teacher_vectors": {"computed_now": teacher.computed, "cpu_seconds": round(teacher.seconds, 1)},
        "load_before_and_after": [load, os.getloadavg()]}
    words = re.sub("[^a-z0-9]+", "-", options.machine.lower()).strip("-")
    path = HERE / "results" / f"{datetime.date.today()}-{words}-static_embedding.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    for name, row in facts.items():
        low, high = row["ci95"]
        gain = row.get("minus Model2Vec")
        print(f"  {name:<58} {row['spearman']:.4f} [{low:.4f}..{high:.4f}]" + (
            f"  Model2Vec {gain['difference']:+.4f} [{gain['ci95'][0]:+.4f}..{gain['ci95'][1]:+.4f}]" if gain else "")
            + f"  {row.get('cpu_seconds', '')}")
    print(json.dumps(speed), sizes)
    print(path)


if __name__ == "__main__":
    main()
