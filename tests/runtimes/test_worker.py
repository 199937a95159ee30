"""The worker in this process: orders in, answers out."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from understudy.runtimes import worker
from understudy.runtimes.estimator import held


def served(*orders: dict) -> list[dict]:
    answers = io.StringIO()
    worker.serve(io.StringIO("".join(json.dumps(order) + "\n" for order in orders)), answers)
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_an_order_that_fails_is_answered_and_the_next_is_done():
    """Prevents: one bad order ends the process, and the parent can only say that it is gone."""
    bad, good = served({"do": "answers", "rows": "nowhere.npy", "batch": 1, "to": "x"}, {"do": "memory"})
    assert bad["error"] == "FileNotFoundError" and "nowhere.npy" in bad["text"]
    assert good["peak"] > 1_000_000


def test_batches_go_round_and_are_copies():
    rows = np.arange(10).reshape(5, 2)
    found = list(worker.batches(rows, 3, 3, None))
    assert [batch[:, 0].tolist() for batch in found] == [[0, 2, 4], [6, 8, 0], [2, 4, 6]]
    found[0][:] = -1
    assert rows.min() == 0
    assert list(worker.batches(["a", "b"], 1, 3, None)) == [["a"], ["b"], ["a"]]


def test_texts_are_given_without_what_fills_them_up():
    """Prevents: one short text takes as long as the longest of the test rows."""
    rows = np.array([[5, 6, 0, 0], [7, 0, 0, 0], [0, 0, 0, 0]])
    assert worker.trimmed(rows, 0).tolist() == [[5, 6], [7, 0], [0, 0]]
    assert worker.trimmed(rows[2:], 0).shape == (1, 1) and worker.trimmed(rows, None) is rows
    assert [batch.shape for batch in worker.batches(rows, 1, 2, 0)] == [(1, 2), (1, 1)]


def test_calls_are_counted_one_by_one():
    model = worker.Model()
    seen = []
    model.rows, model.call = np.arange(4), lambda rows: seen.append(rows.tolist())
    found = model.calls({"batch": 2, "calls": 3})
    assert seen == [[0, 1], [2, 3], [0, 1]] and len(found["seconds"]) == 3 and found["cpu"] >= 0


def test_peak_memory_grows_with_what_was_held():
    """In a process of its own, as this one's peak may be far above what is held now; the peak stays when the memory is given back."""
    script = ("from understudy.runtimes import worker; before = worker.peak(); held = bytearray(2 * before); held[::4096] = b'x' * "
              "len(held[::4096]); size = len(held); del held; print(worker.peak() - before, size)")
    grown, size = map(int, subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout.split())
    assert 0.8 * size < grown < 1.5 * size


def test_peak_memory_without_the_kernel_s_line_is_that_of_getrusage(monkeypatch):
    """Prevents: no model can be measured where /proc has no VmHWM."""
    real = worker.peak()
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO("Name: x\n"))
    assert worker.peak() > 0.5 * real


@pytest.mark.parametrize("runtime", ["onnx", "torch_eager", "static", "estimator"])
def test_every_runtime_names_its_libraries(runtime):
    import importlib

    for package, extra in {"onnx": [("onnxruntime", "export")], "static": [("tokenizers", "hf")]}.get(runtime, []):
        pytest.importorskip(package, reason=f"needs the extra {extra}")
    found = importlib.import_module(f"understudy.runtimes.{runtime}")
    assert found.TITLE and all(version[0].isdigit() for version in found.libraries().values())


def test_an_estimator_is_fitted_from_rows_and_answers_for_every_class(tmp_path):
    """Three classes of which one was never seen: its probability is the smallest, the others are those of the estimator."""
    from sklearn.naive_bayes import GaussianNB

    from understudy.runtimes import estimator

    inputs = np.array([[0.0], [0.2], [3.0], [3.3]])
    labels = np.array([0, 0, 2, 2])
    np.savez(tmp_path / "t.npz", inputs=inputs, labels=labels)
    options = {"module": "sklearn.naive_bayes", "name": "GaussianNB", "arguments": {}, "classes": 3}
    said = np.exp(estimator.load(str(tmp_path / "t.npz"), 1, options)(inputs))
    assert said[:, [0, 2]] == pytest.approx(np.clip(GaussianNB().fit(inputs, labels).predict_proba(inputs), 1e-12, 1))
    assert said[:, 1] == pytest.approx(1e-12)


def test_an_ensemble_of_folders_is_the_mean_of_its_members(tmp_path):
    """Against the formula in float64: log of the weighted mean of the members' probabilities."""
    import torch

    from understudy.models.mlp import Model
    from understudy.preprocess import Preprocess
    from understudy.runtimes import torch_eager
    from understudy.students import artefact

    rows = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    preprocess = Preprocess.fit("vector", rows)
    said = []
    for number in range(2):
        torch.manual_seed(number)
        module = Model(hidden=(5,)).build((4,), 3)
        artefact.save(tmp_path / f"member-{number}", module, model={"arch": "mlp", "hidden": [5]}, shape=(4,), classes=("a", "b", "c"),
                      preprocess=preprocess.to_dict(), card="")
        logits = artefact.load(tmp_path / f"member-{number}").logits(rows).astype(np.float64)
        said.append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    options = {"members": ["member-0", "member-1"], "weights": [3.0, 1.0]}
    found = torch_eager.load(str(tmp_path), 1, options)(rows)
    assert found == pytest.approx(np.log(0.75 * said[0] + 0.25 * said[1]), abs=1e-5)


def test_what_an_estimator_holds_is_counted_once_and_grows_with_its_trees():
    ensemble, linear_model = pytest.importorskip("sklearn.ensemble"), pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(300, 6)), rng.integers(0, 3, 300)
    line = linear_model.LogisticRegression().fit(rows, labels)
    arrays = {"coef_", "intercept_", "classes_", "n_iter_"}
    assert held(line) == sum(getattr(line, name).nbytes for name in arrays)
    line.again = line.coef_
    assert held(line) == sum(getattr(line, name).nbytes for name in arrays)
    for kind in (ensemble.HistGradientBoostingClassifier, ensemble.RandomForestClassifier):
        name = "max_iter" if kind is ensemble.HistGradientBoostingClassifier else "n_estimators"
        one, four, seven = (held(kind(random_state=0, **{name: count}).fit(rows, labels)) for count in (10, 40, 70))
        assert one > 5_000 and abs((seven - four) - (four - one)) < 0.1 * (four - one)
