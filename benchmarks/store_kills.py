"""Kill a recording process with SIGKILL more than a hundred times, at every point of the write path and at random moments.

    PYTHONPATH=src python benchmarks/store_kills.py [--each 4] [--random 70] [--seed 1] [--machine "WORDS"]

After every kill the store is read back and compared with what the process acknowledged: nothing lost, doubled or wrong, and at most
one batch asked again. Ends with an AssertionError at the first kill for which that does not hold.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import runpy
import tempfile
import time
from collections import Counter
from pathlib import Path

from understudy.store.writer import POINTS

HERE = Path(__file__).resolve().parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=4, help="kills at every named point")
    parser.add_argument("--random", type=int, default=70, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--machine", default="2 shared virtual cores of an AMD EPYC with AVX-512 bf16, 24 GB")
    options = parser.parse_args()
    campaign = runpy.run_path(str(HERE.parent / "tests" / "store" / "recorder.py"))["campaign"]
    rows, batch = 320, 16
    load, began = os.getloadavg(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        facts = list(campaign(Path(folder), list(POINTS) * options.each, options.random, options.seed, rows=rows, batch=batch))
    kills = Counter(fact["point"] for fact in facts)
    result = {
        "what": "SIGKILL of a recording process, then everything read back", "machine": options.machine,
        "python": platform.python_version(),
        "command": f"python benchmarks/store_kills.py --each {options.each} --random {options.random} --seed {options.seed}",
        "rows_of_one_recording": 2 * rows, "rows_of_one_batch": batch, "kills": len(facts), "kills_by_point": dict(sorted(kills.items())),
        "acknowledged_rows_checked": sum(fact["acknowledged"] for fact in facts),
        **{name: sum(fact[name] for fact in facts) for name in ("lost", "doubled", "wrong")},
        "most_batches_repeated_by_one_kill": max(fact["repeated"] for fact in facts) / batch,
        "stored_rows_at_the_kill": {"least": min(fact["stored"] for fact in facts), "most": max(fact["stored"] for fact in facts)},
        "seconds": round(time.monotonic() - began, 1), "load_before_and_after": [load, os.getloadavg()],
    }
    words = re.sub("[^a-z0-9]+", "-", options.machine.lower()).strip("-")
    path = HERE / "results" / f"{datetime.date.today()}-{words}-store_kills.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(path)


if __name__ == "__main__":
    main()
