"""Models in processes of their own: what they import, in which order they are called, and what becomes of one that breaks."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from understudy.errors import DataError
from understudy.evaluation import processes
from understudy.evaluation.processes import Entry, Worker, calls_of, side_by_side, turns

onnx = pytest.importorskip("onnx", reason="needs the extra export")


@pytest.fixture
def doubling(tmp_path) -> Entry:
    """A model that gives its rows times two."""
    rows = np.arange(40, dtype=np.float32).reshape(20, 2)
    np.save(tmp_path / "rows.npy", rows)
    return Entry("double", "onnx", str(graph(tmp_path / "double.onnx", 2.0)), str(tmp_path / "rows.npy"), all=str(tmp_path / "rows.npy"))


def graph(file: Path, factor: float) -> Path:
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    shape = ["batch", 2]
    made = helper.make_graph(
        [helper.make_node("Mul", ["input", "factor"], ["logits"])], "g", [helper.make_tensor_value_info("input", number, shape)],
        [helper.make_tensor_value_info("logits", number, shape)], [helper.make_tensor("factor", number, [], [factor])])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(file))
    return file


def test_every_round_is_another_order_and_the_same_key_the_same():
    """Prevents: one model is always called behind the same neighbour, whose cache it finds."""
    rounds = [turns(6, 0, 1, repeat) for repeat in range(8)]
    assert all(sorted(order) == list(range(6)) for order in rounds) and len({tuple(order) for order in rounds}) > 4
    assert rounds == [turns(6, 0, 1, repeat) for repeat in range(8)]


@pytest.mark.parametrize(("seconds", "calls"), [(0.0, 1000), (1e-6, 1000), (processes.BLOCK / 40, 40), (10.0, 5)])
def test_a_block_takes_about_as_long_whatever_the_model(seconds, calls):
    assert calls_of(seconds) == calls


def test_a_model_whose_answers_are_no_numbers_or_whose_python_is_gone_is_named_and_the_others_measured(doubling, tmp_path):
    """Prevents: one broken file ends the whole measurement, or is what the healthy ones are compared with."""
    nan = replace(doubling, name="nan", path=str(graph(tmp_path / "nan.onnx", float("nan"))))
    gone = replace(doubling, name="gone", python=str(tmp_path / "no/python"))
    found = {one.entry.name: one for one in side_by_side([nan, doubling, gone], batches=[1], repeats=2, threads=1, starts=1)}
    assert not found["double"].failed and found["double"].answers is not None and found["double"].paces
    assert "NaN or infinity" in found["nan"].failed and found["nan"].answers is None
    assert "no/python" in found["gone"].failed and "a Python that can be started" in found["gone"].failed


@pytest.mark.slow
def test_a_file_named_like_a_library_beside_the_model_is_not_run(doubling, tmp_path, monkeypatch):
    """Prevents: measuring a downloaded folder from inside runs the numpy.py that somebody put there."""
    (tmp_path / "numpy.py").write_text("raise SystemExit('run')\n")
    monkeypatch.chdir(tmp_path)
    with Worker(doubling, 1) as worker:
        assert "onnxruntime" in worker.start()["modules"]


@pytest.mark.slow
def test_a_process_of_onnx_runtime_has_no_torch_and_says_where_its_time_went(doubling):
    """Prevents: the memory and the cold start of an artefact are those of the library that it was made with."""
    with Worker(doubling, 1) as worker:
        found = worker.start()
    assert "onnxruntime" in found["modules"] and not {"torch", "pydantic", "sklearn"} & set(found["modules"])
    assert set(found["seconds"]) == {"start", "import", "load", "first_call"} and all(part > 0 for part in found["seconds"].values())
    rss = found["rss"]
    assert 0 < rss["interpreter"] < rss["libraries"] <= rss["loaded"]
    assert set(found["libraries"]) == {"onnxruntime", "numpy"}


@pytest.mark.slow
def test_a_model_that_breaks_is_named_and_the_others_are_measured(doubling, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(Path(doubling.path).read_bytes()[:40])
    other = Entry("other", "onnx", str(broken), doubling.rows)
    read = iter(range(100))
    found = side_by_side([other, doubling], batches=[1, 4], repeats=2, threads=1, starts=1, meter=lambda: float(next(read)))
    assert found[0].failed.startswith('"other" could not be measured: got ') and "ONNX Runtime can load" in found[0].failed
    assert not found[0].paces and found[0].answers is None
    whole = found[1]
    rows = np.load(doubling.rows)
    assert not whole.failed and np.array_equal(whole.answers, 2 * rows) and np.array_equal(whole.said, 2 * rows)
    assert set(whole.paces) == set(whole.peaks) == {1, 4} and len(whole.starts) == 1
    assert all(len(pace.repeats) == 2 and pace.calls == sum(map(len, pace.repeats)) and pace.joules == 2.0 for pace in whole.paces.values())
    assert whole.peaks[4] >= whole.peaks[1] >= whole.starts[0]["rss"]["loaded"]


@pytest.mark.slow
def test_a_process_that_dies_and_one_that_hangs_are_told_apart(doubling):
    with Worker(doubling, 1) as worker:
        worker.start()
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(DataError, match="signal 9"):
            worker.ask({"do": "memory"})
    with Worker(doubling, 1, limit=0.3) as worker:
        os.kill(worker._process.pid, signal.SIGSTOP)
        with pytest.raises(DataError, match=r"no answer within 0\.3 s"):
            worker.ask({"do": "memory"})
    assert worker._process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_an_interpreter_that_can_t_start_is_said_with_its_last_line(doubling, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with Worker(doubling, 1) as worker, pytest.raises(DataError, match="ended with code"):
        worker.start()
