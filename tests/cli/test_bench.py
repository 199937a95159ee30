"""`understudy bench`: a run's models side by side, and model files by themselves."""

from __future__ import annotations

import functools
import json

import onnx
import pytest

pytestmark = pytest.mark.slow

QUICK = ("--repeats", "2", "--starts", "1", "--batch", "4")


@pytest.fixture
def there(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return toy.run("export=[onnx]", "training.seeds=1")


def test_a_whole_run(understudy, there):
    before = json.loads((there.path / "bench.json").read_text())
    broken = there.path / "exports/broken"
    broken.mkdir()
    (broken / "model.onnx").write_bytes(b"no model")
    done = understudy("bench", "toy", *QUICK, "--watts", "7", "--grid", "300", "--prices", "example", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    [api] = found["apis"]
    assert api["per_million"] == pytest.approx(1e6 * 0.00015) and "tokens a prediction" in api["assumption"] and api["currency"] == "EUR"
    rows = {row["name"]: row for row in found["models"]}
    assert list(rows) == ["teacher", "control", "student", "broken", "onnx"]

    assert '"broken" could not be measured' in rows["broken"]["failed"] and rows["broken"]["batches"] == {}
    measured = [row for row in rows.values() if not row["failed"]]
    assert len(measured) == 4, [row["failed"] for row in rows.values()]
    for row in measured:
        assert set(row["batches"]) == {"1", "4"} and row["bytes"] > 0 and row["rss"]["peaks"]["1"] > row["rss"]["interpreter"]
        pace = row["batches"]["1"]
        assert 0 < pace["p50"] <= (pace["p95"] or pace["p50"]) and len(pace["medians"]) == 2
        joules = row["energy"]["per_1000"]["1"]
        assert any(one["joules"] == pytest.approx(7000 * pace["cpu_seconds_per_row"]) and "7 W" in one["method"] for one in joules)
        assert [one["machine"] for one in row["cost"]] == ["small server", "two cloud cores"]
        assert all(one["assumption"] for one in row["cost"])
        assert 0 <= row["quality"]["value"] <= 1 and row["quality"]["rows"] == there.summary["examples"]
        assert sum(row["cold_start"][part]["value"] for part in ("start", "import", "load", "first_call")) == pytest.approx(
            row["cold_start"]["total"]["value"])

    summary, student = there.summary, rows["student"]
    assert student["quality"]["value"] == pytest.approx(summary["arms"]["distilled"]["shipped"])
    assert rows["teacher"]["quality"]["value"] == summary["teacher"]["value"]
    assert rows["teacher"]["bytes"] == summary["teacher"]["bytes"] and rows["teacher"]["batches"]["1"]["times_teacher"] is None
    assert rows["onnx"]["quality"] == student["quality"] and rows["onnx"]["answers"]["agreement"] == 1.0
    assert all(rows[name]["answers"] is None for name in ("teacher", "control", "student")), "another model, or itself"
    assert rows["onnx"]["wire"]["input"] == 4 * 4 and rows["onnx"]["wire"]["answer"] == 3 * 4, "four numbers in, three logits out"
    share = rows["onnx"]["batches"]["1"]["cpu_seconds_per_row"] / rows["teacher"]["batches"]["1"]["cpu_seconds_per_row"]
    parts = found["savings"]["onnx"]
    assert set(found["savings"]) == {"onnx"} and parts["precision"] == 1 and parts["price"] <= 1, "the cheapest machine against the first"
    assert parts["compute"] * parts["runtime"] == pytest.approx(share)
    assert {one["instead_of"] for one in found["break_even"]} == {"the teacher", "language model by token"}

    after = json.loads((there.path / "bench.json").read_text())
    assert after == {**before, "measured": found}, "the run's own latencies stay"
    page = (there.path / "report.html").read_text()
    assert 'id="measured"' in page and "frontier" in page and "broken is not measured" in page
    done = understudy("bench", "toy", *QUICK)
    assert done.code == 0 and "No energy: " in done.out and "pays for itself" in done.out
    assert f"accuracy on {summary['examples']} test rows, with its 95 % interval" in done.out
    assert f"Same answers and max |Δ|: on {rows['onnx']['answers']['rows']} rows." in done.out
    assert "onnx: compute " in done.out and "a prediction costs " in done.out
    assert "ONNX" not in done.out.splitlines()[0] and done.out.splitlines()[0].split()[:2] == ["runtime", "quality"]


def test_model_files_by_themselves(understudy, there, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("a,b,c,d\n5.1,3.5,1.4,0.2\n6.2,2.9,4.3,1.3\n")
    student = there.path / "student"
    done = understudy("bench", there.path / "exports/onnx/model.onnx", student, *QUICK, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert [row["name"] for row in found["models"]] == ["model.onnx", "student"] and "synthetic" in found["rows"]
    assert found["compared"] == "model.onnx"
    assert not any(row["failed"] or row["answers"] for row in found["models"]), "nobody sends such rows, so nothing is said of answers"
    done = understudy("bench", there.path / "exports/onnx/model.onnx", student, *QUICK, "--input", rows, "--json")
    found = json.loads(done.out)
    assert found["models"][1]["answers"]["agreement"] == 1.0 and "rows.csv" in found["rows"]


def test_what_is_no_model_is_refused(understudy, there, tmp_path):
    assert understudy("bench", "nowhere").code == 3
    assert understudy("bench", tmp_path / "no.onnx").code == 3
    assert understudy("bench", "toy", "--watts", "-1").code == 2
    assert understudy("bench", "toy", "--batch", "1000000000").code == 2
    done = understudy("bench", "toy", "--input", "rows.csv")
    assert done.code == 2 and "--input is for models without a run" in done.err
    assert understudy("bench", "toy", "--prices", tmp_path / "none.yaml").code == 3


def test_a_file_that_was_changed_since_it_was_checked_is_not_measured_and_nothing_measured_is_no_success(understudy, there, tmp_path):
    """Prevents: a file that answers otherwise stands in the table like the others; an empty table that ends with exit 0."""
    path = there.path / "exports/onnx/model.onnx"
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if len(one.dims) == 2)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight)[::-1].copy(), weight.name))
    onnx.save(model, path)
    done = understudy("bench", path, *QUICK)
    assert done.code == 3 and "not the file that was checked" in done.out and "latency and memory are real" not in done.out, done
    path = path.rename(path.with_name("other.onnx"))
    assert understudy("bench", path, *QUICK).code == 0, "another file, of which nobody said what it is"


def test_a_device_s_limits_are_gates(understudy, toy, tmp_path, monkeypatch):
    """Prevents: a model that its device can't hold goes out, as no gate of the recipe looked at the machine."""
    monkeypatch.chdir(tmp_path)
    from understudy.errors import GateError
    from understudy.stages import speed

    monkeypatch.setattr(speed, "Wanted", functools.partial(speed.Wanted, repeats=2, starts=1, batch=4))

    profiles = "profiles={tiny: {wire_bytes: 20, model_mb: 1, artefact: onnx}, wide: {memory_mb: 100000}}"
    with pytest.raises(GateError, match=r"tiny\.wire_bytes"):
        toy.run("export=[onnx]", "training.seeds=1", profiles)
    run = toy.runs / "toy"
    gates = {gate["name"]: gate for gate in json.loads((run / "summary.json").read_text())["gates"]}
    assert gates["tiny.wire_bytes"] == {"name": "tiny.wire_bytes", "want": 20.0, "got": 28.0, "passed": False}
    assert gates["tiny.model_mb"]["passed"] and gates["wide.memory_mb"]["passed"]
    assert json.loads((run / "details.json").read_text())["gates"] == list(gates.values())
    assert "tiny.wire_bytes" in (run / "report.html").read_text()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    done = understudy("bench", "toy", *QUICK)
    assert done.code == 4 and "tiny.wire_bytes" in done.err
    assert [gate["name"] for gate in json.loads((run / "summary.json").read_text())["gates"]] == list(gates)
