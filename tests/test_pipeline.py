"""pipeline.py: whole runs at toy size, looked at from outside: what is asked, trained, written and refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from understudy import pipeline, recipe
from understudy.data import from_arrays
from understudy.errors import DataError, GateError, Interrupted, RecipeError, RightsError
from understudy.stages import costs
from understudy.stages.prepare import Given, prepare
from understudy.store.reader import Reader
from understudy.store.writer import Writer

DIGITS = "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}}"
PICTURES = (
    DIGITS, "teacher={kind: local, model: {arch: cnn, width: 8}, train: {epochs: 4, lr: 1e-2, batch_size: 64}, rights: {terms: own}}",
    "student.model={arch: mlp, hidden: [16]}", "training.batch_size=64")  # fmt: skip


def files(folder: Path) -> set[str]:
    """All files below the folder, hidden ones too."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def numbers(value, path=""):
    """{dotted path: number} of all numbers in a document."""
    if isinstance(value, dict):
        return {key: item for name, inner in value.items() for key, item in numbers(inner, f"{path}.{name}").items()}
    if isinstance(value, list):
        return {key: item for index, inner in enumerate(value) for key, item in numbers(inner, f"{path}.{index}").items()}
    return {path: value} if isinstance(value, int | float) and not isinstance(value, bool) else {}


def tensors(folder: Path) -> list[bytes]:
    """The bytes of every tensor of some size in the safetensors files below the folder."""
    return [tensor.numpy().tobytes() for path in folder.rglob("*.safetensors") for tensor in load_file(path).values() if tensor.numel() > 8]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """One run on images with an ensemble, looked at by several tests, and its events."""
    events = []
    teacher = (
        "{kind: local, model: {arch: cnn, width: 8}, train: {epochs: 4, lr: 1e-2, batch_size: 64}, rights: {terms: own, licence: mine}}"
    )
    wanted = recipe.load(
        {
            "name": "digits",
            **recipe.parse(
                f"{{data: {DIGITS.partition('=')[2]}, teacher: [{teacher}, {teacher}], student: {{model: {{arch: mlp, hidden: [16]}}}}, "
                "objective: [{kind: logits.SoftTargets, temperature: 4.0, weight: 0.9}, {kind: labels.CrossEntropy, weight: 0.1}], "
                "training: {epochs: 3, batch_size: 64, lr: 1e-2, seeds: 3}, export: [safetensors, onnx], gates: {min_kept: 0.1}}"
            ),
        }
    )
    folder = tmp_path_factory.mktemp("digits")
    return pipeline.run(wanted, events.append, options=pipeline.Options(runs=folder / "runs")), events


# --- the run folder


def test_the_run_folder_holds_what_the_design_says_and_nothing_else(digits):
    """Prevents: a file that everybody expects is not there, or a temporary one stays."""
    run, _ = digits
    arms = {f"arms/{arm}/seed-{seed}/{name}" for arm in ("control", "distilled") for seed in range(3)
            for name in ("metrics.jsonl", "outputs.safetensors", "result.json", "student.safetensors")}  # fmt: skip
    assert files(run.path) == arms | {
        ".lock", "recipe.yaml", "provenance.json", "metrics.jsonl", "timing.jsonl", "summary.json", "details.json", "bench.json",
        "report.html", "student/config.json", "student/model.safetensors", "student/README.md", "exports/safetensors/config.json",
        "exports/safetensors/model.safetensors", "exports/safetensors/README.md", "exports/onnx/model.onnx",
        "exports/onnx/config.json"}  # fmt: skip
    assert not [name for name in files(run.path.parent) if name.endswith(".tmp") or "checkpoint" in name]


def test_a_second_run_leaves_the_same_files(digits):
    """Prevents: temporary files that pile up with every run."""
    run, _ = digits
    before = files(run.path.parent)
    again = pipeline.run(recipe.load(run.path / "recipe.yaml"), options=pipeline.Options(runs=run.path.parent))
    assert files(run.path.parent) == before and again.summary == run.summary


def test_summary_has_the_fields_of_the_design(digits):
    run, _ = digits
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary == run.summary
    wanted = {
        "schema",
        "name",
        "task",
        "metric",
        "higher_is_better",
        "examples",
        "trivial",
        "teacher",
        "arms",
        "parameters_ratio",
        "claims",
        "gates",
    }
    assert set(summary) == wanted and summary["schema"] == 1 and summary["task"] == "classification"
    assert set(summary["teacher"]) == {"value", "parameters", "bytes", "members"} and summary["teacher"]["members"] == 2
    assert set(summary["arms"]["control"]) == {"mean", "ci95", "seeds", "parameters", "bytes"}
    assert set(summary["arms"]["distilled"]) == {
        "mean", "ci95", "seeds", "parameters", "bytes", "shipped", "retention", "kept", "gap_closed", "verdict", "difference", "p_value",
        "smallest_visible", "fidelity", "worst_slice"} | (
            {"gap_closed_reason"} if summary["arms"]["distilled"]["gap_closed"] is None else set())  # fmt: skip
    for key, value in numbers(summary["arms"]).items():
        if not re.search("bytes|parameters|kl_nats|retention|kept|gap|smallest|ci95", key):
            assert -1 <= value <= 1, f"{key} is a fraction"
    assert [gate["name"] for gate in summary["gates"]] == ["min_kept"] and summary["claims"]


def test_the_figures_are_those_of_the_outputs(digits):
    """Prevents: a report about other rows, other seeds or another student than those that were trained."""
    run, _ = digits
    data = prepare(recipe.load(run.path / "recipe.yaml"), Given())
    labels = data.examples.labels[data.test.numpy()]
    for arm in ("control", "distilled"):
        said = [load_file(run.path / "arms" / arm / f"seed-{seed}" / "outputs.safetensors")["test"].numpy() for seed in range(3)]
        assert run.summary["arms"][arm]["seeds"] == pytest.approx([(one.argmax(1) == labels).mean() for one in said])
    shipped = run.student.predict(data.examples.raw[data.test.numpy()])
    assert run.summary["arms"]["distilled"]["shipped"] == pytest.approx((shipped.argmax(1) == labels).mean())
    best = [json.loads((run.path / f"arms/distilled/seed-{seed}/result.json").read_text())["best"]["value"] for seed in range(3)]
    seed = run.student.config["extra"]["seed"]
    assert best[seed] == max(best) and seed == best.index(max(best)), "the first of the best on validation ships"
    assert run.summary["examples"] == len(labels) == 899


def test_rows_of_metrics_hold_no_clock(digits):
    run, _ = digits
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert {(row["arm"], row["seed"]) for row in rows} == {("teacher", 0), ("teacher", 1)} | {
        (arm, seed) for arm in ("control", "distilled") for seed in range(3)}  # fmt: skip
    assert not [key for row in rows for key in row if re.search("second|time|rate|_s$", key)]
    timing = [json.loads(line) for line in (run.path / "timing.jsonl").read_text().splitlines()]
    assert {"data", "teacher", "record", "train", "report"} <= {row["stage"] for row in timing} and all(
        row["seconds"] >= 0 and row["cpu_seconds"] >= 0 for row in timing
    )


def test_bench_holds_the_wall_clock_figures(digits):
    """Prevents: summary.json sends the reader to bench.json, which is not there."""
    run, _ = digits
    bench = json.loads((run.path / "bench.json").read_text())
    assert bench["latency"]["teacher"] > 0 and bench["latency"]["student"] > 0 and "batch 1" in bench["latency"]["conditions"]
    assert "bench.json" in (run.path / "summary.json").read_text()


def test_only_the_student_comes_out(digits):
    """Prevents: a teacher's weights shipped with the student, to people who may not have them."""
    run, _ = digits
    teachers = [data for path in (run.path.parent / "_cache").glob("teacher-*") for data in tensors(path)]
    assert len(teachers) >= 4
    out = [path for folder in ("student", "exports") for path in (run.path / folder).rglob("*") if path.is_file()]
    for path in out:
        content = path.read_bytes()
        assert not any(data in content for data in teachers), path
    assert load_file(run.path / "student/model.safetensors").keys() == load_file(run.path / "exports/safetensors/model.safetensors").keys()


def test_what_is_shipped_has_its_card(digits):
    """Prevents: the exported copy of the student comes with an empty README.md."""
    run, _ = digits
    card = (run.path / "student/README.md").read_text()
    assert "digits" in card and len(card) > 500
    assert (run.path / "exports/safetensors/README.md").read_text() == card


def test_provenance(digits):
    run, _ = digits
    found = json.loads((run.path / "provenance.json").read_text())
    tree = recipe.resolved(recipe.load(run.path / "recipe.yaml"))
    assert found["recipe"] == tree and found["command"].endswith("recipe.yaml")
    assert found["rights"]["terms"] == "own" and found["rights"]["teachers"]["teacher 0 (local)"]["licence"] == "mine"
    assert found["versions"]["torch"] and found["hardware"]["threads"] and len(found["fingerprints"]["data"]) == 64
    assert found["models"]["student"] == run.student.config["weights"]["sha256"]
    assert found["data"]["train"] + found["data"]["validation"] + found["data"]["test"] == 1797 and "stratified" in found["data"]["made"]
    assert found["settled"]["student"]["chosen"]["precision"] == tree["training"]["precision"]


@pytest.mark.slow
def test_what_was_settled_is_in_the_recipe_and_stays_known(digits):
    """Prevents: after a second start nobody can say why this precision was chosen."""
    run, _ = digits
    before = json.loads((run.path / "provenance.json").read_text())["settled"]
    text = (run.path / "recipe.yaml").read_text().replace("tokenizer: {kind: auto", "")  # of images there is nothing to settle in it
    assert "auto" not in re.findall(r": (\w+)", text)
    pipeline.run(recipe.load(run.path / "recipe.yaml"), options=pipeline.Options(runs=run.path.parent))
    assert json.loads((run.path / "provenance.json").read_text())["settled"] == before


def test_events_tell_every_stage_once_begun_and_ended(digits):
    _, events = digits
    open_stage = None
    for event in events:
        if event.kind == "start":
            assert open_stage is None, f"{event.stage} inside {open_stage}"
            open_stage = event.stage
        elif event.kind == "end" and event.stage != "done":
            assert open_stage == event.stage
            open_stage = None
        if event.fraction is not None:
            assert 0 <= event.fraction <= 1
    assert [event.stage for event in events if event.kind == "end"] == [
        "data", "settle", "teacher", "self-test", "record", "self-test", "train", "export", "measure", "evaluate", "report",
        "done"]  # fmt: skip
    assert Path(events[-1].data["report"]).is_file() and Path(events[-1].data["student"]).is_dir()


def test_the_student_predicts_without_the_package_s_pipeline(digits):
    run, _ = digits
    probabilities = run.student.predict(np.zeros((2, 8, 8), dtype=np.uint8))
    assert probabilities.shape == (2, 10) and np.allclose(probabilities.sum(1), 1)


# --- paid once


def test_what_a_run_stands_on_costs_what_it_cost(toy):
    """Prevents: a run whose teacher came out of the cache has paid for itself after a few predictions."""
    def cost(run):
        return costs.spent(run.path, recipe.resolved(toy.recipe()), Given())

    first = toy.run("training.seeds=1")
    second = toy.run("name=other", "training.seeds=1")
    mine, theirs = cost(first), cost(second)
    assert mine["kept"] == {} and mine["not_counted"] == [] and toy.trained() == set()
    assert {"teacher", "store", "arm"} <= set(theirs["kept"])
    assert theirs["kept"]["arm"] > 0.5 * mine["cpu_seconds"]["train"] and theirs["kept"]["teacher"] > 0
    assert theirs["core_seconds"] == pytest.approx(sum(theirs["kept"].values()) + sum(theirs["cpu_seconds"].values()))
    again = cost(toy.run("training.seeds=1"))
    assert again["kept"] == {}, "a run's second start finds what it has paid itself"
    assert again["core_seconds"] >= mine["core_seconds"]


def test_a_second_run_asks_and_trains_nothing(toy):
    """Prevents: the teacher is paid twice."""
    first = toy.run()
    assert toy.asked() == 150 and toy.trained() == {
        "teacher",
        *(f"{arm}, seed {seed}" for arm in ("control", "distilled") for seed in (0, 1)),
    }
    page = (first.path / "summary.json").read_bytes()
    again = toy.run()
    assert toy.asked() == 0 and toy.trained() == set() and (again.path / "summary.json").read_bytes() == page


def test_another_recipe_asks_nothing_twice_and_trains_no_control_twice(toy):
    """Prevents: a search over temperatures that trains the same control again for each."""
    toy.run()
    other = toy.run("name=other", "objective.0.temperature=4.0", "store.dtype=float32")
    assert toy.asked() == 0 and toy.trained() == {"distilled, seed 0", "distilled, seed 1"}
    for seed in (0, 1):
        kept = [(toy.runs / name / f"arms/control/seed-{seed}/student.safetensors").read_bytes() for name in ("toy", "other")]
        assert kept[0] == kept[1]
    assert other.path.name == "other"
    toy.run("name=more", "training.seeds=3")
    assert toy.trained() == {"control, seed 2", "distilled, seed 2"}


BOTH, ALL = {"control", "distilled"}, {"teacher", "control", "distilled"}
CHANGES = {
    **dict.fromkeys(("training.epochs=3", "training.steps=3", "training.batch_size=8", "training.optimizer=sgd", "training.lr=1e-3",
                     "training.clip=0.1", "training.weight_decay=0.1", "training.schedule=constant", "training.warmup=0.5",
                     "training.ema=0.5", "training.patience=1", "training.precision=bfloat16", "training.class_weights=balanced",
                     "student.model={arch: mlp, hidden: [4]}", "student.match_prior=[setosa]", "data.transfer.examples=0.5",
                     "data.transfer.labels=0.5", "data.transfer.omit=[setosa]", "data.transfer.only=[setosa, virginica]",
                     "objective.1.label_smoothing=0.1"), BOTH),
    **dict.fromkeys(("data.split.seed=1", "data.split.validation=0.3", "metric=log_loss", "metric_weights={setosa: 5.0}"), ALL),
    **dict.fromkeys(("objective.0.weight=0.5", "store.dtype=float16", "store={keep: topk, k: 3}"), {"distilled"}),
    **dict.fromkeys(("teacher.train.epochs=3", "teacher.seed=5"), {"teacher", "distilled"}),
    **dict.fromkeys(("gates.min_kept=0.0", "export=[]", "training.control_reason=x", "data.groups={setosa: short}"), set())}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_field_trains_what_depends_on_it_and_only_that(change, toy):
    """Prevents: a stale result under a changed recipe, or a field that is written down and not used."""
    toy.run()
    before = {name: (toy.runs / "toy" / f"arms/{name}/seed-0/student.safetensors").read_bytes() for name in ("control", "distilled")}
    toy.run("name=changed", change)
    assert {name.partition(",")[0] for name in toy.trained()} == CHANGES[change]
    rightly = {"training.precision=bfloat16", "training.class_weights=balanced", "training.patience=1", "metric=log_loss"}  # the same here
    rightly |= {"metric_weights={setosa: 5.0}"}
    for name in CHANGES[change] - {"teacher"}:
        after = (toy.runs / "changed" / f"arms/{name}/seed-0/student.safetensors").read_bytes()
        assert change in rightly or after != before[name], f"{change} changed the record of {name} and not its result"


# --- refusals


def test_the_same_name_with_another_recipe_is_refused_with_the_keys(toy):
    """Prevents: results of two recipes in one folder."""
    first = toy.run()
    before = {name: (first.path / name).read_bytes() for name in files(first.path)}
    with pytest.raises(RecipeError) as error:
        toy.run("training.epochs=3", "objective.0.temperature=5")
    assert "objective.0.temperature, training.epochs" in str(error.value) and "--replace" in str(error.value) and error.value.exit_code == 2
    assert {name: (first.path / name).read_bytes() for name in files(first.path)} == before
    again = toy.run("training.epochs=3", replace=True)
    assert recipe.load(again.path / "recipe.yaml").training.epochs == 3


def test_replace_with_data_that_can_not_be_read_keeps_the_old_run(toy):
    """Prevents: a typo in a path together with --replace removes a finished run."""
    first = toy.run()
    before = {name: (first.path / name).read_bytes() for name in files(first.path)}
    with pytest.raises(DataError):
        toy.run("data={kind: table, path: /nowhere.csv, label: y, split: {test: 0.3}}", replace=True)
    assert {name: (first.path / name).read_bytes() for name in files(first.path)} == before


def test_gates_decide_after_the_report_is_written(toy):
    """Prevents: a missed gate hides the report that says why."""
    with pytest.raises(GateError) as error:
        toy.run("gates={min_value: 1.1, max_parameters_ratio: 1e-6, min_agreement: 0.0}")
    assert error.value.exit_code == 4 and "min_value" in str(error.value) and "max_parameters_ratio" in str(error.value)
    assert "min_agreement" not in str(error.value)
    summary = json.loads((toy.runs / "toy/summary.json").read_text())
    assert [(gate["name"], gate["passed"]) for gate in summary["gates"]] == [
        ("min_value", False), ("max_parameters_ratio", False), ("min_agreement", True)]  # fmt: skip
    assert (toy.runs / "toy/report.html").is_file() and str(toy.runs / "toy/report.html") in str(error.value)
    assert toy.events[-1].stage == "done"


def test_without_a_control_nobody_knows_and_the_report_says_why(toy):
    run = toy.run("training.control=none", "training.control_reason=labels are too dear")
    assert set(run.summary["arms"]) == {"distilled"} and run.summary["arms"]["distilled"]["verdict"] is None
    assert "labels are too dear" in (run.path / "report.html").read_text()
    assert not any(name.startswith("control") for name in toy.trained()) and "control" not in {
        path.name for path in (run.path / "arms").iterdir()
    }


def test_one_seed_gives_no_verdict_and_says_so(toy):
    run = toy.run("training.seeds=1")
    assert run.summary["arms"]["distilled"]["verdict"] == "no evidence" and "one seed" in run.summary["intervals_reason"]
    assert "seed" in run.verdict


@pytest.mark.parametrize(("rights", "code"), [("{terms: disallowed}", 6), ("{}", 6), ("{terms: unknown, licence: who knows}", 6)])
def test_a_teacher_without_the_right_is_refused_before_anything_is_made(rights, code, toy):
    """Prevents: a student that can never be released."""
    with pytest.raises(RightsError) as error:
        toy.run(f"teacher.rights={rights}")
    assert error.value.exit_code == code and not toy.runs.exists() and not toy.events


def test_an_acknowledgement_stands_wherever_somebody_looks(toy):
    run = toy.run("teacher.rights={terms: unknown, licence: unclear-1.0}", acknowledge=("Ada: the author said so by phone",))
    signed = [{"name": "Ada", "reason": "the author said so by phone"}]
    assert json.loads((run.path / "provenance.json").read_text())["rights"]["acknowledged"] == signed
    [header] = (toy.runs / "_cache").glob("store-*/header.json")
    assert json.loads(header.read_text())["rights"]["acknowledged"] == signed
    for name in ("report.html", "student/README.md", "exports/safetensors/README.md"):
        assert "the author said so by phone" in (run.path / name).read_text() and "unclear-1.0" in (run.path / name).read_text(), name


@pytest.mark.parametrize("terms", ["disallowed", "unknown"])
def test_a_stored_teacher_keeps_its_rights(terms, toy):
    """Prevents: rights are laundered by reading a store under a recipe that says `own`."""
    toy.run("name=first")
    [store] = (toy.runs / "_cache").glob("store-*")
    reader = Reader(store)
    rights = {"terms": terms, "teachers": {"teacher (local)": {"terms": terms, "licence": "theirs"}}, "acknowledged": []}
    with Writer(toy.runs / "theirs", dataclasses.replace(reader.header, rights=rights)) as writer:
        writer.append(reader.ids(), 0, {name: rows.numpy() for name, rows in reader.table(reader.ids(), 0).items()})
    for said in ("{terms: own}", "{}"):
        with pytest.raises(RightsError, match="theirs"):
            toy.run("name=second", f"teacher={{kind: stored, path: {toy.runs / 'theirs'}, rights: {said}}}")
    if terms == "unknown":
        toy.run("name=second", f"teacher={{kind: stored, path: {toy.runs / 'theirs'}}}", acknowledge=("Ada: asked them",))


def test_a_stored_teacher_s_own_terms_are_enough(toy):
    toy.run("name=first", "teacher.rights={terms: allowed, licence: Apache-2.0}")
    [store] = (toy.runs / "_cache").glob("store-*")
    run = toy.run("name=second", f"teacher={{kind: stored, path: {store}}}")
    rights = json.loads((run.path / "provenance.json").read_text())["rights"]
    assert rights["terms"] == "allowed" and "Apache-2.0" in json.dumps(rights)


def test_two_processes_can_not_share_a_run_folder(toy):
    from understudy.run_folder import RunFolder

    with RunFolder(toy.runs, "toy").claim(), pytest.raises(RecipeError, match="in use"):
        toy.run()


def test_own_code_runs_only_when_allowed(toy, tmp_path, monkeypatch):
    """Prevents: a recipe from somewhere else runs code."""
    (tmp_path / "ownmodels.py").write_text(
        "import torch\nopen('ran', 'w').close()\n"
        "def student(shape, classes, width=4):\n    first = torch.nn.Linear(shape[0], width)\n"
        "    return torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(width, classes))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    wanted = 'student.model={factory: "ownmodels:student", options: {width: 5}}'
    with pytest.raises(RecipeError, match="--allow-code"):
        toy.run(wanted)
    assert not (tmp_path / "ran").exists()
    run = toy.run(wanted, given=Given(allow_code=True))
    assert (tmp_path / "ran").exists() and run.summary["arms"]["distilled"]["parameters"] == 5 * 5 + 6 * 3


# --- what students see


def test_unlabelled_rows_reach_the_distilled_arm_alone(toy):
    """Prevents: hidden labels leak into the control, or rows without label are lost to distillation."""
    generator = np.random.default_rng(0)
    inputs = np.concatenate([generator.normal(2 * label, 1, (80, 4)) for label in (0, 1, 2)])
    labels = np.repeat([0, 1, 2], 80)
    labels[generator.permutation(240)[:100]] = -1
    given = Given(examples=from_arrays(inputs, labels))
    data = prepare(toy.recipe("data={kind: given, split: {validation: 0.2, test: 0.3}}"), given)
    assert set(data.control.tolist()) < set(data.distilled.tolist()) and len(data.distilled) - len(data.control) == 100
    assert (data.examples.labels[data.control] >= 0).all() and set(data.teacher.tolist()) == set(data.control.tolist())
    run = toy.run("data={kind: given, split: {validation: 0.2, test: 0.3}}", given=given)
    assert toy.asked() == 240
    assert "100 training examples have no label" in (run.path / "report.html").read_text()
    steps = {json.loads((run.path / f"arms/{arm}/seed-0/result.json").read_text())["steps"] for arm in ("control", "distilled")}
    assert len(steps) == 1, "both arms take the same number of steps"


def test_labels_and_examples_of_the_transfer_set(toy):
    data = {share: prepare(toy.recipe(f"data.transfer.{share}=0.25"), Given()) for share in ("labels", "examples")}
    full = prepare(toy.recipe(), Given())
    assert len(full.distilled) == len(full.control) == len(full.teacher)
    assert len(data["labels"].distilled) == len(full.distilled) and len(data["labels"].control) == pytest.approx(
        len(full.control) / 4, abs=2
    )
    assert (data["labels"].student_rows.labels[data["labels"].distilled] >= 0).sum() == len(data["labels"].control)
    assert len(data["examples"].distilled) == len(data["examples"].control) == pytest.approx(len(full.control) / 4, abs=2)
    for one in data.values():
        assert torch.equal(one.test, full.test) and torch.equal(one.validation, full.validation) and torch.equal(one.teacher, full.teacher)
        assert sorted(np.bincount(one.examples.labels[one.control])) == pytest.approx([len(one.control) / 3] * 3, abs=1), "stratified"
    more = prepare(toy.recipe("data.transfer.labels=0.5"), Given())
    assert set(data["labels"].control.tolist()) < set(more.control.tolist()), "a larger share holds the smaller one"


def test_omitted_classes_are_never_seen_and_the_prior_gives_them_back(toy):
    """Hinton's omitted digit: nobody sees a setosa, and the bias is set from inputs without labels."""
    run = toy.run("data.transfer.omit=[setosa]", "student.match_prior=[setosa]", "training.epochs=10")
    data = prepare(recipe.load(run.path / "recipe.yaml"), Given())
    assert (
        0 not in data.examples.labels[data.distilled] and 0 in data.examples.labels[data.teacher] and 0 in data.examples.labels[data.test]
    )
    page = (run.path / "report.html").read_text()
    assert "leaves out class setosa" in page and "not used" in page
    logits = torch.from_numpy(run.student.logits(data.rows.stored[torch.from_numpy(data.split.train)].numpy()))
    assert float(torch.softmax(logits, 1)[:, 0].mean()) == pytest.approx(1 / 3, abs=0.02)
    only = prepare(toy.recipe("data.transfer.only=[setosa, virginica]"), Given())
    assert set(only.examples.labels[only.distilled].tolist()) == {0, 2}


@pytest.mark.parametrize("change", ["data.transfer.omit=[setosae]", "data.transfer.only=[virginca]", "student.match_prior=[setoza]"])
def test_an_unknown_class_is_refused_before_compute(change, toy):
    """Prevents: a class name with a typo is noticed after the first student was trained."""
    with pytest.raises(RecipeError, match="Did you mean"):
        toy.run(change)
    assert toy.trained() == set()


def test_the_prior_needs_a_bias(toy):
    """Prevents: match_prior on a model without an output bias is noticed after the first student was trained."""
    with pytest.raises(RecipeError, match="match_prior"):
        toy.run("student.match_prior=[setosa]", given=Given(student=lambda: torch.nn.Sequential(torch.nn.Linear(4, 3))))
    assert toy.trained() == set()


def test_augmented_views_are_the_teacher_s_too(toy):
    """Prevents: soft targets of another crop than the one that the student sees."""
    run = toy.run(
        *PICTURES, "data.augment={jitter: 1, noise: 0.05, views: 2}", "training.epochs=3", "data.split.test=0.7", "teacher.train.epochs=60"
    )
    [store] = (toy.runs / "_cache").glob("store-*")
    reader = Reader(store)
    assert reader.views == (0, 1, 2)
    data = prepare(recipe.load(run.path / "recipe.yaml"), Given())
    assert len(reader.ids(1)) == len(reader.ids(2)) == len(data.distilled) and len(reader.ids(0)) == len(data.test) + len(data.validation)
    assert toy.asked() == 2 * len(data.distilled) + len(data.test) + len(data.validation)
    tree = recipe.resolved(recipe.load(run.path / "recipe.yaml"))
    from understudy.cache import Cache
    from understudy.stages import teach

    live = teach.obtain(tree, data, Given(), Cache(toy.runs / "_cache"), lambda event: None, lambda: False).teacher
    for view in (1, 2):
        [batch] = data.rows.batches(data.distilled[:64], 64, data.views, view)
        stored = reader.table([data.names[row] for row in batch.ids.tolist()], view)["logits"]
        torch.testing.assert_close(stored, live.teach(batch).logits, rtol=1e-5, atol=1e-5)
    assert not torch.equal(reader.table(data_ids := reader.ids(1)[:20], 1)["logits"], reader.table(data_ids, 2)["logits"])


@pytest.mark.slow
def test_students_without_augmentation_learn_from_the_plain_views(toy):
    toy.run(*PICTURES, "data.augment={jitter: 1}", "training.augment=false", "data.split.test=0.7", "teacher.train.epochs=15",
            "training.epochs=1", "training.seeds=1")  # fmt: skip
    [store] = (toy.runs / "_cache").glob("store-*")
    assert Reader(store).views == (0,)


def test_augmentation_of_vectors_is_refused(toy):
    with pytest.raises(RecipeError, match="images"):
        toy.run("data.augment={jitter: 1}")


# --- kinds of teachers and data


@pytest.mark.slow
@pytest.mark.parametrize("store", ["{keep: topk, k: 2}", "{dtype: float16}", "{keep: topk, k: 2, dtype: float16}"])
def test_compressed_stores(store, toy):
    dense = toy.run("name=dense", "training.epochs=6")
    run = toy.run(f"store={store}", "training.epochs=6")
    assert toy.trained() == {"distilled, seed 0", "distilled, seed 1"}
    wanted = recipe.load(run.path / "recipe.yaml").store
    headers = [json.loads(path.read_text()) for path in (toy.runs / "_cache").glob("store-*/header.json")]
    [header] = [header for header in headers if header["keep"] == wanted.keep and header["dtype"] == wanted.dtype]
    assert header["stated_error"] and (header["k"] == 2) == (wanted.keep == "topk")
    for arm in ("control", "distilled"):
        assert run.summary["arms"][arm]["mean"] == pytest.approx(dense.summary["arms"][arm]["mean"], abs=0.1)
    assert run.summary["teacher"]["value"] == pytest.approx(dense.summary["teacher"]["value"], abs=0.03)


@pytest.mark.slow
def test_a_top_k_store_refuses_what_it_can_not_answer(toy):
    for change in ("objective.0.temperature={start: 1.0, end: 4.0}", "objective.0={kind: logits.MSE}"):
        with pytest.raises((RecipeError, DataError, Exception)) as error:
            toy.run("store={keep: topk, k: 2}", change)
        assert getattr(error.value, "exit_code", 1) in (2, 3, 7), error.value


@pytest.mark.slow
def test_an_ensemble_is_one_teacher_of_all_its_members(toy):
    member = "{kind: local, model: {arch: mlp, hidden: [%d]}, train: {epochs: 8, lr: 2e-2, batch_size: 16}, rights: {terms: own}}"
    run = toy.run(f"teacher=[{member % 16}, {member % 8}]", "teacher_weights=[3, 1]")
    assert run.summary["teacher"]["members"] == 2
    assert run.summary["teacher"]["parameters"] == (5 * 16 + 17 * 3) + (5 * 8 + 9 * 3)
    [store] = (toy.runs / "_cache").glob("store-*")
    assert Reader(store).header.members == 2 and Reader(store).header.member_weights == (3, 1)
    toy.run(f"teacher=[{member % 16}, {member % 8}]", "name=equal")
    assert "teacher" not in toy.trained()


def test_the_strictest_terms_of_an_ensemble_hold(toy):
    member = "{kind: local, model: {arch: mlp, hidden: [4]}, train: {epochs: 1}, rights: {terms: %s}}"
    with pytest.raises(RightsError):
        toy.run(f"teacher=[{member % 'own'}, {member % 'disallowed'}]")


@pytest.mark.parametrize("weights", ["[1]", "[1, -1]", "[1, 0]", "[1, 2, 3]"])
def test_weights_of_an_ensemble_that_do_not_fit_are_refused_before_compute(weights, toy):
    member = "{kind: local, model: {arch: mlp, hidden: [4]}, train: {epochs: 1}, rights: {terms: own}}"
    with pytest.raises(RecipeError):
        toy.run(f"teacher=[{member}, {member}]", f"teacher_weights={weights}")
    assert toy.trained() == set()
    with pytest.raises(RecipeError):
        toy.run("teacher_weights=[1]")


@pytest.mark.slow
def test_boosted_trees_teach_an_mlp_on_a_table(toy, tmp_path):
    """A teacher of another family, and a table with categories and missing cells."""
    generator = np.random.default_rng(1)
    lines = ["age,town,income,label"]
    for _ in range(240):
        age, town = generator.integers(20, 70), generator.choice(["Rome", "Oslo", "Bern"])
        label = "yes" if (age > 45) != (town == "Oslo") else "no"
        lines.append(f"{age if generator.random() > 0.1 else '?'},{town},{generator.normal():.6f},{label}")
    (tmp_path / "people.csv").write_text("\n".join(lines) + "\n")
    run = toy.run(
        f"data={{kind: table, path: {tmp_path / 'people.csv'}, label: label, split: {{validation: 0.2, test: 0.3}}}}",
        "teacher={kind: predictor, estimator: HistGradientBoostingClassifier, options: {max_iter: 30}, rights: {terms: own}}",
        "student.model={arch: mlp, hidden: [16]}", "training.epochs=5")  # fmt: skip
    assert run.summary["teacher"]["value"] > 0.75 and run.summary["teacher"]["parameters"] is None
    assert toy.trained() == {f"{arm}, seed {seed}" for arm in ("control", "distilled") for seed in (0, 1)}
    found = json.loads((run.path / "provenance.json").read_text())["data"]
    assert any("town" in column and "categorical" in column for column in found["columns"])
    probabilities = run.student.predict_file(tmp_path / "people.csv")
    assert probabilities.shape == (240, 2) and run.student.classes == ("no", "yes")
    toy.run(
        "name=again", f"data={{kind: table, path: {tmp_path / 'people.csv'}, label: label, split: {{validation: 0.2, test: 0.3}}}}",
        "teacher={kind: predictor, estimator: HistGradientBoostingClassifier, options: {max_iter: 30}, rights: {terms: own}}",
        "student.model={arch: mlp, hidden: [16]}", "training.epochs=5")  # fmt: skip
    assert toy.asked() == 0 and toy.trained() == set()


def test_a_stored_teacher_needs_no_teacher(toy):
    """The store of an earlier run is enough: same targets, same student."""
    first = toy.run("name=first")
    [store] = (toy.runs / "_cache").glob("store-*")
    moved = store.rename(toy.runs.parent / "kept")
    for path in (toy.runs / "_cache").glob("teacher-*"):
        path.rename(toy.runs.parent / path.name)
    run = toy.run("name=second", f"teacher={{kind: stored, path: {moved}, rights: {{terms: own}}}}")
    assert "teacher" not in toy.trained()
    assert run.summary["teacher"]["value"] == first.summary["teacher"]["value"]
    names = [f"arms/distilled/seed-{seed}/student.safetensors" for seed in (0, 1)]
    assert [(run.path / name).read_bytes() for name in names] == [(first.path / name).read_bytes() for name in names]
    with pytest.raises(DataError, match="data"):
        toy.run("name=third", f"teacher={{kind: stored, path: {moved}, rights: {{terms: own}}}}",
                "data={kind: builtin, name: wine, split: {test: 0.3}}")  # fmt: skip


@pytest.mark.slow
def test_an_onnx_file_teaches(toy):
    first = toy.run("name=first", "student.model={arch: mlp, hidden: [8]}", "export=[onnx]", "training.epochs=8")
    run = toy.run(f"teacher={{kind: predictor, onnx: {first.path}/exports/onnx/model.onnx, takes: encoded, rights: {{terms: own}}}}")
    assert run.summary["teacher"]["value"] == pytest.approx(first.summary["arms"]["distilled"]["shipped"])


@pytest.mark.slow
def test_a_student_folder_teaches_and_starts_another(toy):
    """Born again: a shipped student's weights as a teacher, with and without naming its architecture, and as start weights."""
    first = toy.run("name=first", "student.model={arch: mlp, hidden: [8]}", "training.epochs=10")
    folder = first.path / "student"
    for index, model in enumerate(("{arch: mlp, hidden: [8]}", "null")):
        run = toy.run(f"name=again{index}", f"teacher={{kind: local, model: {model}, weights: {folder}, rights: {{terms: own}}}}")
        assert run.summary["teacher"]["value"] == pytest.approx(first.summary["arms"]["distilled"]["shipped"])
        assert run.summary["teacher"]["parameters"] == first.summary["arms"]["distilled"]["parameters"]
    started = toy.run(
        "name=started", "student.model={arch: mlp, hidden: [8]}", f"student.weights={folder}", "training.lr=1e-9", "training.steps=1"
    )
    assert started.summary["arms"]["control"]["mean"] == pytest.approx(first.summary["arms"]["distilled"]["shipped"], abs=0.03)


@pytest.mark.slow
def test_other_start_weights_under_the_same_path_are_another_run(toy):
    """Prevents: the file with the start weights is replaced, and the old results are shown for it."""
    first = toy.run("name=first", "student.model={arch: mlp, hidden: [8]}")
    other = toy.run("name=other", "student.model={arch: mlp, hidden: [8]}", "training.epochs=20")
    wanted = ("name=started", "student.model={arch: mlp, hidden: [8]}", f"student.weights={first.path / 'student/model.safetensors'}")
    toy.run(*wanted)
    (first.path / "student/model.safetensors").write_bytes((other.path / "student/model.safetensors").read_bytes())
    toy.run(*wanted)
    assert toy.trained() == {f"{arm}, seed {seed}" for arm in ("control", "distilled") for seed in (0, 1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric"), [("breast_cancer", "auroc"), ("wine", "macro_f1"), ("iris", "log_loss"), ("breast_cancer", "auto")]
)
def test_other_metrics(name, metric, toy):
    run = toy.run(f"data={{kind: builtin, name: {name}, split: {{validation: 0.2, test: 0.3}}}}", f"metric={metric}")
    assert run.summary["metric"] == recipe.load(run.path / "recipe.yaml").metric != "auto"
    assert run.summary["higher_is_better"] == (metric != "log_loss")


def test_no_validation_ships_the_first_seed_and_the_last_weights(toy):
    run = toy.run("data.split={validation: 0, test: 0.3}", "training.seeds=3")
    assert run.student.config["extra"]["seed"] == 0
    assert json.loads((run.path / "arms/distilled/seed-0/result.json").read_text())["best"].get("value") is None


def test_no_validation_and_patience_do_not_go_together(toy):
    """Prevents: early stopping that never stops, without a word."""
    with pytest.raises(RecipeError, match="patience"):
        toy.run("data.split={validation: 0, test: 0.3}", "training.patience=2")


# --- stopped, and gone on


def test_a_cancelled_run_goes_on_to_the_same_bytes(toy):
    """Prevents: what was stopped by hand ends differently."""
    whole = toy.run("name=whole", cache=toy.runs / "a")
    for after in (1, 3, 7):
        count = [0]

        def cancel(count=count, after=after):
            count[0] += 1
            return count[0] > after

        with pytest.raises(Interrupted) as stop:
            toy.run(cancel=cancel, cache=toy.runs / "b")
        assert stop.value.exit_code == 130
    run = toy.run(cache=toy.runs / "b")
    for name in ("metrics.jsonl", "student/model.safetensors"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert {**run.summary, "name": "whole"} == whole.summary


def test_recording_alone_and_then_the_run(toy):
    store = pipeline.record_only(toy.recipe(), options=pipeline.Options(runs=toy.runs))
    assert Reader(store).header.keep == "dense" and len(Reader(store)) == 150
    toy.run()
    assert toy.asked() == 0 and "teacher" not in toy.trained()


def test_checking_leaves_no_run_folder_and_trains_nothing(toy):
    checks, plan = pipeline.check_only(toy.recipe(), options=pipeline.Options(runs=toy.runs))
    assert not (toy.runs / "toy").exists() and plan and checks
    assert {path.name.partition("-")[0] for path in (toy.runs / "_cache").iterdir()} <= {"_locks", "settle"}
    toy.run()
    checks, _ = pipeline.check_only(toy.recipe(), options=pipeline.Options(runs=toy.runs))
    assert not [check for check in checks if check.result == "fault"] and len(checks) > 10


def test_a_series_is_a_run_a_value_and_one_plot(toy):
    wanted = toy.recipe("series={key: data.transfer.labels, values: [0.3, 1.0]}")
    found = pipeline.run_series(wanted, toy.events.append, options=pipeline.Options(runs=toy.runs))
    document = json.loads((found.path / "series.json").read_text())
    assert [row["value"] for row in document["rows"]] == [0.3, 1.0] and document["rows"][0]["control"]["mean"] >= 0
    assert (found.path / "series.svg").read_text().startswith("<?xml")
    assert {path.name for path in found.path.iterdir() if path.is_dir()} == {"labels-0.3", "labels-1.0"}
    assert sum("step" in event.data and event.stage == "teacher" for event in toy.events) > 0
    assert toy.asked() == 150, "the second value asks nothing"


@pytest.mark.slow
def test_a_series_is_not_run_as_one(toy):
    """Prevents: understudy.run(load_recipe("hinton_few_labels")) makes one run with none of the values."""
    with pytest.raises(RecipeError, match="run_series"):
        toy.run("series={key: data.transfer.labels, values: [0.3, 1.0]}")


def test_a_series_goes_on_after_a_missed_gate(toy):
    """Prevents: the first value that misses a gate hides the plot of all of them."""
    wanted = toy.recipe("series={key: data.transfer.labels, values: [0.3, 1.0]}", "gates.min_value=1.1")
    with pytest.raises(GateError):
        pipeline.run_series(wanted, options=pipeline.Options(runs=toy.runs))
    assert (toy.runs / "toy/series.json").is_file() and (toy.runs / "toy/labels-1.0/summary.json").is_file()


def test_threads_of_the_recipe_are_used_and_given_back(toy):
    """Prevents: a resumed run computes with another number of threads than it began with, and is not the same."""
    seen = []
    before = torch.get_num_threads()
    toy.run("training.threads=2", given=Given(student=lambda: (seen.append(torch.get_num_threads()), torch.nn.Linear(4, 3))[1]))
    assert set(seen) == {2} and torch.get_num_threads() == before
