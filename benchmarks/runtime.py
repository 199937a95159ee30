"""Cold start and memory of a student: understudy, and understudy-runtime without torch, each in a fresh process.

    PYTHONPATH=src python benchmarks/runtime.py [--repeats 7] [--threads 1]

Builds the runtime's wheel, installs it into a folder of its own, and makes untrained students of the sizes that are usual here. Each row
is a process that imports, loads and answers once: seconds from its start to the first answer (wall and CPU), and the most memory that it
held (VmHWM of /proc, so Linux alone: ru_maxrss counts the parent that started it too). Rows are taken in turns; shown are the median and
[lowest..highest]. The interpreter's own start is a row too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from understudy import kinds, tokens
from understudy.export.onnx import to_onnx
from understudy.preprocess import Preprocess
from understudy.preprocess.audio import LogMel
from understudy.stages.machine import hardware
from understudy.static_embedding import StaticEmbedding
from understudy.students import artefact

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ["turn the light on in the kitchen, please", "play some music"]
ASK = """{load}
import json, time
(most,) = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps({{"rss_mb": int(most) / 1024, "cpu_s": time.process_time()}}))
"""
LOADS = {"understudy": "\nfrom understudy import load\nload({path!r}).{call}",
         "runtime": "\nfrom understudy_runtime import load\nload({path!r}, threads={threads}).{call}",
         "python alone": "", "numpy alone": "\nimport numpy"}


def student(folder: Path, arch: str, preprocess: Preprocess, raw, **options) -> Path:
    """student/ and its ONNX export, untrained."""
    module = kinds.configure("models", arch, options).build(preprocess.shape, 10).eval()
    artefact.save(folder / "student", module, model={"arch": arch, **options}, shape=preprocess.shape, classes=list("0123456789"),
                  preprocess=preprocess.to_dict(), card="", files=getattr(preprocess, "files", {}))
    found = artefact.load(folder / "student")
    (folder / "exports" / "onnx").mkdir(parents=True)
    (folder / "exports" / "onnx" / "model.onnx").write_bytes(to_onnx(found, preprocess.encode(raw)))
    (folder / "exports" / "onnx" / "config.json").write_text(json.dumps({**found.config, "onnx": {"file": "model.onnx"}}))
    return folder / "student"


def students(folder: Path) -> dict[str, tuple[Path, str]]:
    """What is asked -> (folder, the call)."""
    rng = np.random.default_rng(0)
    images, rows = rng.integers(0, 256, (20, 28, 28), dtype=np.uint8), rng.normal(size=(20, 14))
    waves = rng.uniform(-0.3, 0.3, (20, 6400)).astype(np.float32)
    reader = tokens.train("bpe", TEXTS, 400)
    read = Preprocess.fit("text", TEXTS, tokenizer=reader, length=32)
    features = LogMel(8000, 6400, 200, 80)
    embedding = StaticEmbedding(rng.normal(size=(reader.size, 256)).astype(np.float32), reader).save(folder / "static")
    return {
        "image 28 x 28, cnn": (student(folder / "image", "cnn", Preprocess.fit("image", images), images, width=16),
                               "predict(__import__('numpy').zeros((1, 28, 28), 'uint8'))"),
        "numbers, mlp": (student(folder / "table", "mlp", Preprocess.fit("vector", rows), rows, hidden=(32,)),
                         "predict(__import__('numpy').zeros((1, 14)))"),
        "text, bag": (student(folder / "text", "bag", read, TEXTS, width=32, vocabulary=read.vocabulary, pad=read.pad),
                      f"predict([{TEXTS[0]!r}])"),
        "recording 0.8 s, cnn": (student(folder / "audio", "cnn", Preprocess.fit("audio", waves, log_mel=features), waves, width=4),
                                 "predict([__import__('numpy').ones(6400, 'float32') / 8])"),
        "static embedding": (embedding, f"encode([{TEXTS[0]!r}])"),
    }


def installed(folder: Path) -> Path:
    """The runtime alone, as pip installs it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]
    copy = folder / "source"  # the build leaves files in its folder
    for name in ("runtime", "src"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "wheel", copy / "runtime"], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (wheel,) = (folder / "wheel").glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def once(script: str, path: str) -> dict[str, float]:
    """One process: seconds until it ends, CPU seconds and megabytes."""
    began = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    return {"wall_s": time.perf_counter() - began, **json.loads(done.stdout)}


def shown(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}..{max(values):.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found, site = students(folder), installed(folder)
        other = os.environ.get("PYTHONPATH", "")
        jobs = {(kind, ""): (ASK.format(load=LOADS[kind]), other) for kind in ("python alone", "numpy alone")}
        for name, (path, call) in found.items():
            for kind, place in (("understudy", f"{ROOT / 'src'}{os.pathsep}{other}"), ("runtime", f"{site}{os.pathsep}{other}")):
                if (name, kind) == ("static embedding", "understudy"):  # it has a module of its own there
                    continue
                jobs[kind, name] = ASK.format(load=LOADS[kind].format(path=str(path), call=call, threads=given.threads)), place
        rows: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in jobs}
        for turn in range(given.repeats + 1):
            for key, (script, place) in jobs.items():
                measured = once(script, place)
                if turn:  # the first fills the disk's cache
                    rows[key].append(measured)
    table = [{"what": kind, "student": name, **{figure: [one[figure] for one in taken] for figure in ("wall_s", "cpu_s", "rss_mb")}}
             for (kind, name), taken in rows.items()]
    print("| what | student | seconds to the first answer | CPU seconds | MB |\n|---|---|---|---|---|")
    for row in table:
        print(f"| {row['what']} | {row['student']} | {shown(row['wall_s'], 2)} | {shown(row['cpu_s'], 2)} | {shown(row['rss_mb'], 0)} |")
    machine = hardware()["words"]
    conditions = {"machine": machine, "threads": given.threads, "load": os.getloadavg()[0], "python": platform.python_version(),
                  **{name: version(name) for name in ("torch", "numpy", "onnxruntime", "tokenizers")}}
    print(json.dumps(conditions))
    named = re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-")
    out = ROOT / "benchmarks" / "results" / f"{datetime.date.today()}-{named}-runtime.json"
    out.write_text(json.dumps({"conditions": conditions, "repeats": given.repeats, "rows": table}, indent=1) + "\n")
    print(f"wrote {out.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
