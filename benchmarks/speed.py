"""Our training against a bare loop, against the loop that people write, and against other libraries, in one interleaved run.

    python benchmarks/speed.py [--rounds 5] [--pairs tiny-28,mlp-28,cnn-28,resnet-32] [--peers] [--neighbour-rounds 3] [--machine "WORDS"]

Three results. LOOP: `fit` with everything on against a bare loop with the same data path and numerics (1 is no overhead).
OFFLINE: training from a stored teacher with default settings against the same distillation with the teacher in the loop, as people
write it with a DataLoader, and as other libraries do it. NEIGHBOUR: what is left of our rate beside one busy process.

Every row is a process of its own with one thread (but in NEIGHBOUR). Each round takes one unit of every row in random order, one at a
time; a ratio is that of two rates in one round; shown are the median and the spread over rounds. `cpu` is the same ratio in CPU
seconds, which neighbours who take the core disturb less. Beside wall figures the load average before and after is printed.

--peers makes an environment of its own for the other libraries (--peers-folder, kept for the next time) that sees this one's torch.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
PAIRS = ("tiny-28", "mlp-28", "cnn-28", "resnet-32")
EVERYTHING, PLAIN, BARE, CHECKED = "ours, everything on", "ours, no validation", "bare loop", "bare loop that validates"
OURS = (EVERYTHING, PLAIN, BARE, CHECKED)
HAND, CACHED = "DataLoader loop, teacher in it", "TextBrewer, cached"
PEERS = ("torchdistill", "TextBrewer", CACHED, "HF Trainer")
REQUIREMENTS = ("torchdistill==1.1.5", "textbrewer==0.2.1.post1", "transformers==5.23.0", "accelerate==1.15.0", "torchvision==0.28.0")
BESIDE = ("tensorboard", "absl-py", "grpcio", "markdown", "werkzeug", "tensorboard-data-server", "protobuf")  # what TextBrewer imports
WITH_THEIRS = ("tokenizers", "regex", "tqdm", "requests", "psutil", "huggingface-hub")
GOALS = {
    "loop": dict(zip(PAIRS, (0.90, 0.97, 0.97, 0.97), strict=True)),
    "offline": dict(zip(PAIRS, (1.9, 3.5, 6.0, 5.0), strict=True)),
    "offline against TextBrewer's cache": dict(zip(PAIRS, (1.0, 1.2, 2.5, 2.0), strict=True)),
    "neighbour": 0.5,
}


class Worker:
    """One row's process; it serves one pair after the other."""

    def __init__(self, row: str, python: Path, script: str, environment: dict[str, str]) -> None:
        self.row = row
        self.noise = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process; a talkative library would block on a pipe that nobody reads
        self.process = subprocess.Popen(
            [python, HERE / "peers" / script, row], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.noise, text=True,
            env=environment)

    def tell(self, text: str) -> None:
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.noise.seek(0)
        return {"error": (self.noise.read().strip().splitlines() or ["the process ended"])[-1][:300]}

    def begin(self, pair: str, numerics: dict[str, Any]) -> dict[str, Any]:
        self.tell(json.dumps({"pair": pair, "numerics": numerics}))
        return self.hear()

    def unit(self) -> dict[str, Any]:
        self.tell("go")
        return self.hear()

    def end(self) -> None:
        self.tell("end")
        self.hear()

    def close(self) -> None:
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


def environment(**more: str) -> dict[str, str]:
    """One thread, our package and the bench importable; nothing of the caller's own thread and heap settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MALLOC_", "UNDERSTUDY_", "MKL_"))}
    return {**kept, "PYTHONPATH": f"{SOURCE}{os.pathsep}{HERE / 'peers'}", **more}


def peers_python(folder: Path) -> Path:
    """The interpreter of the peers' environment, which is made where it does not stand; it sees this environment's torch."""
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        print(f"making {folder} for the other libraries", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=folder.exists())
        ours = next(path for path in sys.path if path.endswith("site-packages"))
        next(folder.glob("lib/python*/site-packages")).joinpath("beside.pth").write_text(ours + "\n")
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", *REQUIREMENTS, *BESIDE], check=True, stdout=sys.stderr)
        subprocess.run([*pip, *WITH_THEIRS], check=True, stdout=sys.stderr)
        (folder / "made").touch()
    return python


def measure(pair: str, workers: list[Worker], rounds: int) -> dict[str, Any]:
    """Rates of all rows of a pair, and what was settled for ours."""
    live, failed, facts = [], {}, {}
    for worker in workers:
        said = worker.begin(pair, facts.get("numerics", {}) if worker.row in OURS else {})
        if "error" in said:
            failed[worker.row] = said["error"]
            continue
        live.append(worker)
        facts = facts or {key: said[key] for key in ("numerics", "settled", "trial") if key in said}
    taken: dict[str, list[dict[str, Any]]] = {worker.row: [] for worker in live}
    for _ in range(rounds):
        for worker in random.sample(live, len(live)):
            taken[worker.row].append(worker.unit())
    for worker in live:
        worker.end()
    rows = {}
    for row, units in taken.items():
        wall = [unit["examples"] / unit["seconds"] for unit in units]
        cpu = [unit["examples"] / unit["cpu_seconds"] for unit in units]
        rows[row] = {"examples_a_second": wall, "examples_a_cpu_second": cpu}
    return {"rows": rows, "failed": failed, **facts}


def ratio(rows: dict[str, Any], row: str, base: str, goal: float | None = None) -> dict[str, Any]:
    """The rate of `row` over that of `base`, round by round."""
    found: dict[str, Any] = {"row": row, "against": base}
    for name, key in (("wall", "examples_a_second"), ("cpu", "examples_a_cpu_second")):
        ratios = sorted(a / b for a, b in zip(rows[row][key], rows[base][key], strict=True))
        found[name] = {"median": round(statistics.median(ratios), 3), "spread": [round(ratios[0], 3), round(ratios[-1], 3)]}
    return {**found, "goal": goal, "met": None if goal is None else found["wall"]["median"] >= goal}


def compare(pair: str, measured: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The ratios that the goals are about, then those that explain them."""
    rows = measured["rows"]
    loop = [(EVERYTHING, CHECKED, GOALS["loop"][pair]), (EVERYTHING, BARE, None), (PLAIN, BARE, None)]
    offline = [(PLAIN, HAND, GOALS["offline"][pair]), (EVERYTHING, HAND, None),
               *((PLAIN, peer, GOALS["offline against TextBrewer's cache"][pair] if peer == CACHED else None) for peer in PEERS)]
    return {name: [ratio(rows, row, base, goal) for row, base, goal in wanted if row in rows and base in rows]
            for name, wanted in (("loop", loop), ("offline", offline))}


def neighbour(rounds: int) -> dict[str, Any]:
    """Our rate on mlp-28 beside one busy process over our rate without it, for three ways to choose threads.

    `ours, started beside it` settles its threads while the neighbour is there; `ours, two threads, it comes later` has settled before;
    `two threads, no settings` is what a plain torch script does.
    """
    numerics = {"precision": "float32", "memory_format": "contiguous", "compile": False}
    two = str(min(2, os.cpu_count() or 1))
    variants = {"ours, started beside it": (True, environment()),
                "ours, two threads, it comes later": (False, environment(UNDERSTUDY_THREADS=two)),
                "two threads, no settings": (False, environment(OMP_NUM_THREADS=two, OMP_WAIT_POLICY="active", UNDERSTUDY_HEAP="default"))}
    found: dict[str, Any] = {}
    for name, (fresh, settings) in variants.items():
        rates: dict[str, list[float]] = {"quiet": [], "busy": []}
        workers: dict[str, Worker] = {}
        threads: dict[str, Any] = {}
        for _ in range(rounds):
            for state in random.sample(("quiet", "busy"), 2):
                busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if state == "busy" else None
                try:
                    if busy:
                        time.sleep(0.5)
                    key = state if fresh else "both"
                    if fresh or key not in workers:
                        workers[key] = Worker(PLAIN, Path(sys.executable), "ours.py", settings)
                        workers[key].hear()
                        threads[state] = workers[key].begin("mlp-28", numerics).get("settled")
                    unit = workers[key].unit()
                    rates[state].append(unit["examples"] / unit["seconds"])
                    if fresh:
                        workers.pop(key).close()
                finally:
                    if busy:
                        busy.kill()
                        busy.wait()
        for worker in workers.values():
            worker.close()
        ratios = sorted(b / q for b, q in zip(rates["busy"], rates["quiet"], strict=True))
        goal = GOALS["neighbour"] if name.startswith("ours") else None
        found[name] = {"median": round(statistics.median(ratios), 3), "spread": [round(ratios[0], 3), round(ratios[-1], 3)], "goal": goal,
                       "met": None if goal is None else statistics.median(ratios) >= goal, "examples_a_second": rates, "settled": threads}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--peers", action="store_true", help="measure the other libraries too")
    parser.add_argument("--peers-folder", type=Path, default=HERE.parent / "build" / "peers")
    parser.add_argument("--neighbour-rounds", type=int, default=3)
    parser.add_argument("--machine", default="2 shared virtual cores of an AMD EPYC with AVX-512 bf16, 24 GB")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    options = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory(prefix="understudy-speed-") as folder:
        os.environ.update(TMPDIR=folder, TORCHINDUCTOR_CACHE_DIR=f"{folder}/inductor")  # of every worker: compiled once, removed at the end
        run(options)


def run(options: argparse.Namespace) -> None:
    load, begun = os.getloadavg(), time.time()
    one = environment(OMP_NUM_THREADS="1")
    python = Path(sys.executable)
    workers = [Worker(row, python, "ours.py", one) for row in OURS] + [Worker(HAND, python, "pairs.py", one)]
    if options.peers:
        theirs = peers_python(options.peers_folder)
        workers += [Worker(row, theirs, "libraries.py", one) for row in PEERS]
    pairs: dict[str, Any] = {}
    try:
        for worker in workers:
            worker.hear()
        for pair in options.pairs.split(","):
            measured = measure(pair, workers, options.rounds)
            pairs[pair] = {**compare(pair, measured), **measured}
            show(pair, pairs[pair])
    finally:
        for worker in workers:
            worker.close()
    beside = neighbour(options.neighbour_rounds) if options.neighbour_rounds else {}
    for name, row in beside.items():
        print(f"neighbour  {name:<46}{row['median']:6.2f} [{row['spread'][0]:.2f}..{row['spread'][1]:.2f}]{verdict(row)}")
    result = {
        "what": "examples a second as ratios of rows of one round, one thread; median and spread over rounds",
        "machine": options.machine, "python": platform.python_version(), "torch": version("torch"),
        "command": "python benchmarks/speed.py " + " ".join(sys.argv[1:]), "seconds": round(time.time() - begun),
        "load_before_and_after": [load, os.getloadavg()], "pairs": pairs, "neighbour": beside}
    options.out.mkdir(exist_ok=True)
    words = re.sub("[^a-z0-9]+", "-", options.machine.lower()).strip("-")
    path = options.out / f"{datetime.date.today()}-{words}-speed.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"load average {load[0]:.1f} before, {os.getloadavg()[0]:.1f} after; {result['seconds']} s\n{path}")


def verdict(row: dict[str, Any]) -> str:
    return "" if row["goal"] is None else f"   goal {row['goal']:g}: {'met' if row['met'] else 'MISSED'}"


def show(pair: str, found: dict[str, Any]) -> None:
    print(f"{pair}: {', '.join(map(str, found.get('numerics', {}).values()))}")
    for row, rates in found["rows"].items():
        print(f"  {row:<34}{statistics.median(rates['examples_a_second']):12,.0f} examples/s"
              f"{statistics.median(rates['examples_a_cpu_second']):12,.0f} per CPU second")
    for row, why in found["failed"].items():
        print(f"  {row:<34} left out: {why}")
    for part in ("loop", "offline"):
        for row in found[part]:
            wall, cpu = row["wall"], row["cpu"]
            print(f"  {part:<8} {row['row']} / {row['against']:<34}{wall['median']:6.2f} [{wall['spread'][0]:.2f}..{wall['spread'][1]:.2f}]"
                  f"  cpu {cpu['median']:.2f}{verdict(row)}", flush=True)


if __name__ == "__main__":
    main()
