"""A scikit-learn estimator, as its user would call it: `predict_proba`.

Estimators are kept by pickle only, which this package neither writes nor reads: so it is fitted again here, from the same rows and options.
Its cold start is then no figure of a model that is loaded, and the caller leaves it out. Its bytes are those of the arrays that it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TITLE = "scikit-learn"
SMALLEST = 1e-12


def libraries() -> dict[str, str]:
    """scikit-learn, which brings numpy and scipy."""
    import numpy
    import sklearn

    return {"scikit-learn": sklearn.__version__, "numpy": numpy.__version__}


def load(path: str, threads: int, options: Mapping[str, Any]) -> Callable[[Any], Any]:
    """(N, D) rows -> log-probabilities. path: an .npz of "inputs" (M, D) and "labels" (M,); options: "module", "name",
    "arguments", and "classes", how many columns an answer has: a class that the estimator never saw gets the smallest probability."""
    import gc
    import importlib

    import numpy as np

    estimator = getattr(importlib.import_module(options["module"]), options["name"])(**options["arguments"])
    with np.load(path, allow_pickle=False) as given:
        estimator.fit(given["inputs"], given["labels"])
    gc.collect()
    forget_peak()

    def call(rows: np.ndarray) -> np.ndarray:
        said = np.full((len(rows), options["classes"]), SMALLEST)
        said[:, estimator.classes_] = estimator.predict_proba(rows)
        return np.log(np.clip(said, SMALLEST, 1.0))

    vars(call)["held"] = held(estimator)
    return call


def held(estimator: Any) -> int:
    """Bytes of all arrays that can be reached from an estimator, each once: about what a file of it would hold before compression."""
    import numpy as np

    seen: dict[int, Any] = {}  # held on to, so that no address is given out twice
    left, total = [estimator], 0
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, np.ndarray):
            total += one.nbytes
            left += one.tolist() if one.dtype == object else []
        elif isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, list | tuple):
            left += one
        elif type(one).__module__.startswith("sklearn."):
            left.append(one.__getstate__())  # also of trees in C, which have no attributes
    return total


def forget_peak() -> None:
    """Let the process's peak memory begin again, where the system can (Linux): fitting needs far more than answering."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return
