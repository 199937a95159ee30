"""Kill real runs with SIGKILL at random moments more than fifty times, and compare every byte of what comes out.

    PYTHONPATH=src python benchmarks/resume_kills.py [--kills 55] [--seed 1] [--machine "WORDS"]

The run is tests/killed_runs.py's: digits with views, two teachers, dropout, a moving average, a scheduled temperature, three seeds an arm,
a checkpoint at every epoch. After its kills a run goes on to its end; weights, outputs and rows of every student, metrics.jsonl and
summary.json must be the bytes of the run that was left alone. Ends with an AssertionError at the first run for which that does not hold.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import runpy
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=55)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--machine", default="2 shared virtual cores with AVX-512 and AMX, 24 GB")
    options = parser.parse_args()
    campaign = runpy.run_path(str(HERE.parent / "tests" / "killed_runs.py"))["campaign"]
    load, began = os.getloadavg(), time.monotonic()
    facts = []
    with tempfile.TemporaryDirectory() as folder:
        for fact in campaign(Path(folder), options.kills, options.seed):
            facts.append(fact)
            print(f"kill {len(facts)}: run {fact['run']}, {fact['stage']}, {fact['finished_students']} students finished", flush=True)
    result = {
        "what": "SIGKILL of whole runs at random moments; each goes on to the bytes of the run that was left alone",
        "machine": options.machine,
        "python": platform.python_version(),
        "command": f"python benchmarks/resume_kills.py --kills {options.kills} --seed {options.seed}",
        "kills": len(facts),
        "runs": facts[-1]["run"] + 1,
        "kills_by_stage": dict(sorted(Counter(fact["stage"] for fact in facts).items())),
        "most_kills_in_one_run": max(Counter(fact["run"] for fact in facts).values()),
        "runs_that_differed": 0,
        "files_left_over": 0,
        "seconds": round(time.monotonic() - began, 1),
        "load_before_and_after": [load, os.getloadavg()],
    }
    path = HERE / "results" / f"{datetime.date.today()}-{options.machine}-resume_kills.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(path)


if __name__ == "__main__":
    main()
