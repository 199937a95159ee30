"""The fused vocabulary loss against the plain one and other libraries' chunked ones: seconds and memory of a step, one row a process.

    python benchmarks/fused_loss.py [--positions 1024,4096] [--rounds 3] [--keep-heap] [--peers-folder FOLDER] [--machine "WORDS"]

A step is forward KL at T = 1 from both models' hidden states and output layers, mean over positions, with backward into the student's
hidden states and weight. Every row of every round is a process of its own, in random order, one at a time, on one thread: one step to
warm up (compile), then --steps measured. Seconds are CPU seconds of the fastest step; memory is the most that was resident above the
models, less the gradients that every method has to hold. A ratio is that of two rows of one round; shown are median and spread.

TRL (trl==1.16.0) and Liger (liger-kernel==0.8.5) are measured where they can be imported, also from --peers-folder, where

    pip install --no-deps --target FOLDER trl==1.16.0 liger-kernel==0.8.5 accelerate datasets multiprocess dill xxhash psutil

has put them (transformers must be there too); where they can't, their rows say so.
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
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"
OURS, OURS_BF16 = "ours, float32", "ours, bfloat16 products"
TOPK, TOPK_BF16 = "ours, stored top-64 + tail, float32", "ours, stored top-64 + tail, bfloat16 products"
PLAIN, TRL = "plain full KL", "TRL chunked divergence"
LIGER, LIGER_COMPILED, LIGER_BF16 = "Liger chunked JSD, eager", "Liger chunked JSD, compiled", "Liger chunked JSD, compiled, bfloat16"
ROWS = (OURS, OURS_BF16, TOPK, TOPK_BF16, PLAIN, TRL, LIGER, LIGER_COMPILED, LIGER_BF16)
KEPT = 64
HEAP = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
RATIOS = (  # of which row, over which, in what, the goal at the largest number of positions
    (TRL, OURS, "seconds", 2.0), (TRL, OURS_BF16, "seconds", 3.0), (LIGER_COMPILED, OURS_BF16, "seconds", 1.0),
    (LIGER_BF16, OURS_BF16, "seconds", None), (LIGER, OURS, "seconds", None), (LIGER_COMPILED, OURS, "seconds", None),
    (PLAIN, OURS, "seconds", None), (PLAIN, OURS_BF16, "seconds", None),
    (OURS, TOPK, "seconds", None), (OURS_BF16, TOPK_BF16, "seconds", None),
    (TRL, OURS, "MiB", 8.0), (TRL, OURS_BF16, "MiB", 8.0), (LIGER, OURS, "MiB", 5.0), (LIGER, OURS_BF16, "MiB", 5.0),
    (LIGER_COMPILED, OURS, "MiB", 5.0), (PLAIN, OURS, "MiB", None))


def resident(peak: bool = False) -> float:
    """MiB of this process that are in memory, or the most that were since `forget_peak`."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"Vm{'HWM' if peak else 'RSS'}:\s+(\d+)", text)[1]) / 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def made(options: argparse.Namespace) -> dict[str, Any]:
    """Hidden states of both models and their output layers; logits spread over some nats, as a trained model's do."""
    import torch
    made = torch.Generator().manual_seed(0)
    n, v, own, wide = options.n, options.classes, options.student, options.teacher

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=made)

    return {"hidden": normal(n, own).requires_grad_(), "weight": (normal(v, own) * own ** -0.5 * 2).requires_grad_(),
            "other": normal(n, wide), "layer": normal(v, wide) * wide ** -0.5 * 3}


def stored(given: dict[str, Any]) -> Any:
    """Top-64 rows of the teacher and their tails, as a store gives them; the teacher's layer is not needed after."""
    import torch

    from understudy.records import TopKRows
    found = []
    for rows in given.pop("other").split(128):
        logits = rows @ given["layer"].t()
        logits -= logits.amax(-1, keepdim=True)
        kept, ids = logits.topk(KEPT, -1)
        whole = torch.logsumexp(logits, -1)
        found.append((ids, kept, whole, torch.logsumexp(logits.scatter_(1, ids, -torch.inf), -1) - whole))
    del given["layer"]
    ids, kept, whole, tail = (torch.cat(part) for part in zip(*found, strict=True))
    return TopKRows(ids, kept, {1.0: whole}, {1.0: tail})


def step_of(row: str, options: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """The tensors of a row and a function that gives its loss. Raises ImportError where the library is not there."""
    import torch
    import torch.nn.functional as F
    given = made(options)
    hidden, weight = given["hidden"], given["weight"]
    low = torch.bfloat16 if "bfloat16" in row else torch.float32
    if row.startswith("ours"):
        from understudy.fused import CHUNK_BYTES, Output, Pointwise, fused
        teacher = stored(given) if "top-64" in row else Output(given["other"], given["layer"])
        budget = options.chunk_bytes or CHUNK_BYTES

        def loss() -> Any:
            terms, coefficients = [Pointwise("forward_kl")], [1 / options.n]
            return fused(Output(hidden, weight), teacher, None, terms, coefficients, chunk_bytes=budget, matmul=low).sum() / options.n
    elif row == PLAIN:
        def loss() -> Any:
            student, teacher = (hidden @ weight.t()).log_softmax(-1), (given["other"] @ given["layer"].t()).log_softmax(-1)
            return F.kl_div(student, teacher, log_target=True, reduction="none").sum(-1).mean()
    elif row == TRL:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        def loss() -> Any:
            return ChunkedDivergenceFunction.apply(hidden, weight, None, given["other"], given["layer"], None, 0.0)[0].mean()
    else:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
        theirs = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled="compiled" in row)
        labels = torch.zeros(options.n, dtype=torch.int64)

        def loss() -> Any:
            return theirs(hidden.to(low), weight.to(low), given["other"].to(low), given["layer"].to(low), labels)
    return given, loss


def child(options: argparse.Namespace) -> dict[str, Any]:
    """One row: the fastest step and the peak."""
    try:
        given, loss = step_of(options.row, options)
    except ImportError as error:
        return {"error": f"not installed: {error}"}
    leaves = [given["hidden"], given["weight"]]
    gradients = sum(leaf.numel() * 4 for leaf in leaves) / 2**20
    base, seconds, wall, value = resident(), [], [], 0.0
    for number in range(1 + options.steps):
        for leaf in leaves:
            leaf.grad = None
        if number == 1:
            forget_peak()
        begun, cpu = time.perf_counter(), time.process_time()
        total = loss()
        total.backward()
        value = float(total.detach())
        del total
        seconds.append(time.process_time() - cpu)
        wall.append(time.perf_counter() - begun)
    return {"seconds": min(seconds[1:]), "wall_seconds": min(wall[1:]), "first_seconds": seconds[0],
            "MiB": resident(peak=True) - base - gradients, "loss": value,
            "gradient_norm": float(sum(leaf.grad.float().norm() ** 2 for leaf in leaves)) ** 0.5}


def environment(options: argparse.Namespace) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MALLOC_", "UNDERSTUDY_", "MKL_"))}
    path = [str(SOURCE), *([str(options.peers_folder)] if options.peers_folder else []), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": str(options.threads), **(HEAP if options.keep_heap else {})}


def measure(options: argparse.Namespace, positions: int) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """All rows at one number of positions, round by round; a row that fails once is not tried again."""
    taken: dict[str, list[dict[str, Any]]] = {row: [] for row in options.rows}
    failed: dict[str, str] = {}
    for _ in range(options.rounds):
        for row in random.sample(options.rows, len(options.rows)):
            if row in failed:
                continue
            command = [sys.executable, __file__, "--row", row, "--n", str(positions), *(
                f"--{name}={getattr(options, name)}" for name in ("classes", "student", "teacher", "steps")),
                f"--chunk-bytes={options.chunk_bytes}"]
            done = subprocess.run(command, capture_output=True, text=True, env=environment(options), check=False)
            lines = done.stdout.strip().splitlines()
            found = json.loads(lines[-1]) if done.returncode == 0 and lines else {
                "error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:300]}
            if "error" in found:
                failed[row] = found["error"]
            else:
                taken[row].append(found)
    return {row: units for row, units in taken.items() if units and row not in failed}, failed


def ratios(rows: dict[str, list[dict[str, Any]]], last: bool) -> list[dict[str, Any]]:
    """How many times as much the first row takes as the second."""
    found = []
    for theirs, ours, key, goal in RATIOS:
        if theirs in rows and ours in rows:
            each = sorted(a[key] / b[key] for a, b in zip(rows[theirs], rows[ours], strict=True))
            middle, goal = statistics.median(each), goal if last else None
            found.append({
                "row": theirs, "over": ours, "in": key, "median": round(middle, 2), "spread": [round(each[0], 2), round(each[-1], 2)],
                "goal": goal, "met": None if goal is None else middle >= goal})
    return found


def of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", default="1024,4096")
    parser.add_argument("--classes", type=int, default=131072)
    parser.add_argument("--student", type=int, default=256, help="width of the student's output layer")
    parser.add_argument("--teacher", type=int, default=512, help="width of the teacher's output layer")
    parser.add_argument("--rows", type=lambda text: text.split(";"), default=list(ROWS), help="names with ; between them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--chunk-bytes", type=int, default=0, help="of our rows; 0 is the default of the library")
    parser.add_argument("--keep-heap", action="store_true", help="for all rows: freed memory stays with the process, as our runs do it")
    parser.add_argument("--peers-folder", type=Path)
    parser.add_argument("--machine", default="2 shared virtual cores of an AMD EPYC with AVX-512 bf16 and no AMX, 24 GB")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    parser.add_argument("--n", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.row:
        print(json.dumps(child(options)))
    else:
        run(options)


def run(options: argparse.Namespace) -> None:
    random.seed(0)
    load, begun = os.getloadavg(), time.time()
    if options.peers_folder:
        sys.path.append(str(options.peers_folder))
    sizes, results = sorted(int(n) for n in options.positions.split(",")), {}
    for positions in sizes:
        rows, failed = measure(options, positions)
        found = ratios(rows, positions == sizes[-1])
        results[positions] = {"rows": rows, "failed": failed, "ratios": found}
        print(f"{positions} positions, {options.classes} classes, {options.threads} thread(s)")
        for row, units in rows.items():
            middle = {key: statistics.median(unit[key] for unit in units) for key in ("seconds", "MiB", "loss", "gradient_norm")}
            print(f"  {row:<48}{middle['seconds']:9.2f} CPU s{middle['MiB']:9.0f} MiB   loss {middle['loss']:.6f}  "
                  f"gradient {middle['gradient_norm']:.5g}")
        for row, why in failed.items():
            print(f"  {row:<48}{why}")
        for ratio in found:
            goal = "" if ratio["goal"] is None else f"   goal {ratio['goal']:g}: {'met' if ratio['met'] else 'MISSED'}"
            names = f"{ratio['row']} / {ratio['over']}, {ratio['in']}"
            print(f"  {names}: {ratio['median']:.2f} [{ratio['spread'][0]}..{ratio['spread'][1]}]{goal}")
    result = {
        "what": "forward KL from hidden states and output layers with its backward: CPU seconds, and MiB above models and gradients",
        "machine": options.machine, "python": platform.python_version(),
        **{name: of(name) for name in ("torch", "trl", "liger-kernel")},
        "command": "python benchmarks/fused_loss.py " + " ".join(sys.argv[1:]), "classes": options.classes, "student": options.student,
        "teacher": options.teacher, "threads": options.threads, "heap_kept": options.keep_heap, "seconds": round(time.time() - begun),
        "load_before_and_after": [load, os.getloadavg()], "positions": results}
    options.out.mkdir(exist_ok=True)
    words = re.sub("[^a-z0-9]+", "-", options.machine.lower()).strip("-")
    path = options.out / f"{datetime.date.today()}-{words}-fused_loss{'-heap_kept' if options.keep_heap else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"load average {load[0]:.1f} before, {os.getloadavg()[0]:.1f} after; {result['seconds']} s\n{path}")


if __name__ == "__main__":
    main()
