"""A real run that is killed again and again, and compared with one that was left alone.

Used by tests/test_resume.py and benchmarks/resume_kills.py. Nothing here imports torch: the runs are subprocesses.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RECIPE = """
name: killed
data: {kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}, augment: {jitter: 1, views: 2}}
teacher:
  - &member {kind: local, model: {arch: cnn, width: 8}, rights: {terms: own}, train: &plain
      {epochs: 6, lr: 1e-2, batch_size: 64, precision: float32, memory_format: contiguous, compile: false}}
  - *member
student: {model: {arch: mlp, hidden: [32, 16], dropout: 0.2}}
objective:
  - {kind: logits.SoftTargets, temperature: {start: 6.0, end: 2.0}, weight: 0.9}
  - {kind: labels.CrossEntropy, weight: 0.1}
training:
  {epochs: 25, batch_size: 32, lr: 1e-2, ema: 0.99, clip: 1.0, warmup: 0.1, seeds: 3, precision: float32, memory_format: contiguous,
   compile: false}
metric: accuracy
export: [safetensors]
"""
"""Everything that has a state: dropout, views, a schedule, a moving average, warm-up, two teachers, three seeds. Three seconds of work."""
AFTER = {
    "data": "settle or teacher", "settle": "teacher", "teacher": "self-test", "self-test": "record", "record": "self-test",
    "record, self-test": "train", "train": "export", "export": "measure", "measure": "evaluate", "evaluate": "report",
    "report": "end"}  # fmt: skip
"""The stage that follows one."""


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (negative: the signal), what it said, the seconds since its data was ready, its stage at the end."""

    code: int
    text: str
    seconds: float

    @property
    def stage(self) -> str:
        """The stage that it was in; a resumed run settles nothing."""
        done = [line.split()[0] for line in self.text.splitlines() if line.startswith("  ") and " done in " in line]
        return AFTER["record, " + done[-1] if "record" in done and done[-1] == "self-test" else done[-1]]


def start(runs: Path, *more: str) -> subprocess.Popen[str]:
    """`understudy run` in a process of its own, in the folder beside `runs`."""
    runs.parent.mkdir(parents=True, exist_ok=True)
    recipe = runs.parent / "killed.yaml"
    recipe.write_text(RECIPE)
    words = [sys.executable, "-m", "understudy.cli", "run", str(recipe), "--runs", str(runs), "--checkpoint-seconds", "0", *more]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def run(runs: Path, after: float | None = None, send: int = signal.SIGKILL, times: int = 1, *more: str) -> Ended:
    """One run; `after` so many seconds since its data was ready the signal is sent (None: never), and again every 10 ms."""
    process = start(runs, *more)
    said = []
    assert process.stderr is not None
    for line in process.stderr:
        said.append(line)
        if line.startswith("  data ") and " done in " in line:
            break
    begun = time.monotonic()
    try:
        try:
            rest = process.communicate(timeout=600 if after is None else after)[1]
        except subprocess.TimeoutExpired:
            for _ in range(times):
                process.send_signal(send)
                time.sleep(0.01)
            rest = process.communicate(timeout=600)[1]
    finally:
        process.kill()
    return Ended(process.returncode, "".join(said) + rest, time.monotonic() - begun)


def outcome(runs: Path) -> dict[str, bytes]:
    """The bytes of all that must be the same: every student, all rows, the summary."""
    folder = runs / "killed"
    names = ["metrics.jsonl", "summary.json", "recipe.yaml", "student/model.safetensors", "student/config.json"]
    names += [str(path.relative_to(folder)) for path in sorted(folder.glob("arms/*/*/*"))]
    return {name: (folder / name).read_bytes() for name in names}


def leftovers(runs: Path) -> list[str]:
    """Files that a finished run must not leave."""
    return [str(path) for path in runs.rglob("*") if path.name.endswith(".tmp") or path.name.startswith("checkpoint")]


def campaign(folder: Path, kills: int, seed: int) -> Iterator[dict]:
    """Kill runs until it happened `kills` times; a run that ends before its kill is compared, and another one begins.

    Yields one fact sheet a kill. Raises AssertionError where a run that was killed ends differently from the one that was left alone.
    """
    draw = random.Random(seed)
    whole = run(folder / "whole" / "runs")
    assert whole.code == 0, whole.text
    expected = outcome(folder / "whole" / "runs")
    done = number = 0
    while done < kills:
        runs = folder / f"run-{number}" / "runs"
        killed = 0
        while True:
            # Each attempt goes on from the last checkpoint, so that a run takes several kills before it ends.
            after = draw.uniform(0.1, 0.9) * whole.seconds if done < kills else None
            ended = run(runs, after)
            if ended.code != -signal.SIGKILL:
                break
            done, killed = done + 1, killed + 1
            finished = len(list(runs.glob("_cache/arm-*/entry.json")))
            yield {"run": number, "seconds": round(after or 0.0, 3), "stage": ended.stage, "finished_students": finished}
        assert ended.code == 0, ended.text
        got = outcome(runs)
        assert got.keys() == expected.keys(), got.keys() ^ expected.keys()
        assert got == expected, f"after {killed} kills these differ: {[name for name in got if got[name] != expected[name]]}"
        assert not leftovers(runs), leftovers(runs)
        number += 1
