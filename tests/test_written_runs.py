"""Running text that models write themselves, end to end at toy size: on-policy, the teacher's texts, and a draft for the teacher."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from understudy import pipeline, recipe
from understudy.errors import GateError, Interrupted, RecipeError
from understudy.stages import draft, writing
from understudy.students import generate

NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
OWN = "data.transfer={source: rollouts, rollouts: {share: 0.6, after: 0.2, prompt: 8, tokens: 10, reuse: 2}}"
TOLD = "data.transfer={source: teacher, rollouts: {prompt: 8, tokens: 20}}"
JUDGED = "objective=[{kind: policy.ReverseKLAdvantage}, {kind: sequence.ForwardKL}, {kind: labels.CrossEntropy, weight: 0.1}]"
LABELS = "objective=[{kind: labels.CrossEntropy}]"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, folders):
    """Forty documents of a small language, some longer than a row."""
    return folders.documents(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def small(corpus):
    def call(*more):
        teacher = "{kind: local, model: {arch: decoder, width: 16, layers: 1, heads: 2}, rights: {terms: own}, "
        return recipe.load("next_word", [
            f"data={{kind: corpus, path: '{corpus}', passage: 160, split: {{validation: 0.1, test: 0.3}}}}",
            f"teacher={teacher}train: {{epochs: 12, batch_size: 8, lr: 1e-2, {NUMERICS}}}}}",
            "student={model: {arch: decoder, width: 8, layers: 1, heads: 2}, tokenizer: {kind: bpe, size: 300}}",
            "objective=[{kind: sequence.ForwardKL}, {kind: labels.CrossEntropy, weight: 0.1}]",
            f"training={{steps: 20, batch_size: 8, lr: 1e-2, seeds: 1, threads: 1, {NUMERICS}}}",
            "store={keep: live}", "metric=bits_per_byte", *more,
        ])  # fmt: skip

    return call


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One teacher for all tests."""
    return tmp_path_factory.mktemp("cache")


def outcome(run):
    """What a run comes to, byte for byte."""
    files = {str(path.relative_to(run.path)): path.read_bytes() for path in sorted((run.path / "arms").rglob("*.safetensors"))}
    return files | {name: (run.path / name).read_bytes() for name in ("summary.json", "metrics.jsonl")}


def rows_of(run, arm):
    return [row for line in (run.path / "metrics.jsonl").read_text().splitlines() if (row := json.loads(line))["arm"] == arm]


@pytest.mark.slow
def test_a_student_learns_from_what_it_writes_and_a_stop_changes_no_byte(small, cache, tmp_path):
    wanted = small(OWN, JUDGED)
    whole = pipeline.run(wanted, options=pipeline.Options(runs=tmp_path / "whole", cache=cache))
    assert {row["check"]: row["result"] for row in whole.details["selftest"]}.items() >= {
        "rollouts-arrive": "ok", "rollouts-share": "ok", "no-op-term": "ok", "sensitivity": "ok"}.items()
    assert {"ReverseKLAdvantage/mean", "ForwardKL/mean", "CrossEntropy/mean"} <= set(rows_of(whole, "distilled")[0])
    assert "ReverseKLAdvantage/mean" not in rows_of(whole, "control")[0]
    own = whole.summary["own_text"]
    assert own["tokens"] > 0 and all(own[arm]["kl_nats"] > 0 for arm in ("control", "distilled"))
    checks, _ = pipeline.check_only(wanted, options=pipeline.Options(runs=tmp_path, cache=cache))
    assert not [check for check in checks if check.result == "fault"] and "rollouts-arrive" in [check.name for check in checks]
    assert "KL on its own text" in (whole.path / "report.html").read_text(encoding="utf-8")
    events, options = [], pipeline.Options(runs=tmp_path / "parts", cache=tmp_path / "parts" / "_cache", checkpoint_seconds=0.0)
    for stop in (7, 5):
        questions = iter(range(1, 1000))

        def cancel(stop=stop, questions=questions):
            return bool(events) and events[-1].stage == "train" and next(questions) >= stop

        with pytest.raises(Interrupted):
            pipeline.run(wanted, events.append, cancel, options=options)
        events.clear()
    resumed = pipeline.run(wanted, options=options)
    assert outcome(resumed) == outcome(whole)


@pytest.mark.slow
def test_the_teacher_writes_once(small, cache, tmp_path, monkeypatch):
    """Stopped in the middle it goes on where it was; a second run with another student has nothing written."""
    monkeypatch.setattr(writing, "PART", 8)
    asked = []
    real = writing.continuations

    def counting(model, prompts, options, *, seed, keys):
        asked.extend(keys)
        return real(model, prompts, options, seed=seed, keys=keys)

    monkeypatch.setattr(writing, "continuations", counting)
    events, wanted = [], small(TOLD, LABELS)
    questions = iter(range(1, 100))
    with pytest.raises(Interrupted, match="what the teacher wrote is kept"):
        pipeline.run(wanted, events.append, lambda: bool(events) and events[-1].stage == "write" and next(questions) >= 3,
                     options=pipeline.Options(runs=tmp_path, cache=cache))
    assert len(asked) == 24
    run = pipeline.run(wanted, options=pipeline.Options(runs=tmp_path, cache=cache))
    data = run.summary
    assert len(asked) == len(set(asked)) == int(run.details["split"]["train"]), "no row was written twice, and none left out"
    assert {row["check"]: row["result"] for row in run.details["selftest"]}["texts-arrive"] == "ok"
    assert any(note.startswith("The teacher wrote ") for note in run.details["notes"]) and "own_text" in data
    pipeline.run(small(TOLD, LABELS, "name=again", "student.model.width=4"), options=pipeline.Options(runs=tmp_path, cache=cache))
    assert len(asked) == len(set(asked))
    plain = pipeline.run(small(LABELS.replace("]", ", {kind: sequence.ForwardKL}]"), "name=plain"),
                         options=pipeline.Options(runs=tmp_path, cache=cache))
    one, other = (load_file(each.path / "arms/control/seed-0/student.safetensors") for each in (run, plain))
    assert all(torch.equal(value, other[name]) for name, value in one.items()), "the control reads the rows, whoever writes"


@pytest.mark.slow
def test_a_draft_gives_the_teachers_own_text_and_says_what_it_saves(small, cache, tmp_path):
    run = pipeline.run(small("draft={prompts: 8, prompt: 6, tokens: 15, ahead: 3}"), options=pipeline.Options(runs=tmp_path, cache=cache))
    found = run.summary["draft"]
    assert found["prompts"] == 8 and found["different"] == [] and 0 < found["tokens"] <= 8 * 15
    for arm in ("control", "distilled"):
        one = found[arm]
        assert found["tokens"] / 4 <= one["passes"] <= found["tokens"] and 0 <= one["accepted_share"] <= 1
        assert one["tokens_per_pass"] == pytest.approx(1 / (1 - one["passes_saved"]))
        assert one["accepted_per_pass"] + 1 == pytest.approx(one["tokens_per_pass"]), "each pass gives one of the teacher's own"
        assert "speedup" not in one, "seconds are other ones in every run"
    bench = json.loads((run.path / "bench.json").read_text())["draft"]
    assert bench["distilled"]["speedup"] > 0 and bench["distilled"]["ci95"][0] < bench["distilled"]["ci95"][1]
    assert "As a draft" in (run.path / "report.html").read_text(encoding="utf-8") and "token for token" in run.remarks[0]


@pytest.mark.slow
def test_a_draft_that_changes_the_text_is_named_after_the_report(small, cache, tmp_path, monkeypatch):
    """Prevents: a faster teacher that says something else."""
    def wrong(target, model, prompt, **options):
        found = generate.speculative(target, model, prompt, **options)
        return generate.Speculated((found.tokens + 1) % 50, found.proposed, found.accepted)

    monkeypatch.setattr(draft, "speculative", wrong)
    with pytest.raises(GateError, match="is not the teacher's own") as error:
        pipeline.run(small("draft={prompts: 4, prompt: 6, tokens: 5}"), options=pipeline.Options(runs=tmp_path, cache=cache))
    assert error.value.exit_code == 4 and (tmp_path / "next_word" / "report.html").exists()
    said = json.loads((tmp_path / "next_word" / "summary.json").read_text())["draft"]["different"]
    assert len(said) == 4 and said[0]["prompt"] in str(error.value) and all(one["gap"] > 0 for one in said), "of the shipped student"


@pytest.mark.parametrize(("overrides", "said"), [
    ((OWN, "store={keep: tokens}"), "needs a teacher that is asked in every step"),
    ((TOLD, "store={keep: tokens}"), "needs a teacher that is asked in every step"),
    ((OWN, "data.transfer.rollouts.prompt=500"), "longer texts than rows are"),
    ((OWN, "data.transfer.rollouts.temperature=0"), "must be drawn"),
    ((OWN, "data.transfer.rollouts.share=1"), "nothing to learn from the student's own texts"),
    ((OWN, LABELS), "no term of the objective asks the teacher"),
    ((JUDGED,), "learns from what the student writes"),
    ((TOLD, JUDGED), "learns from what the student writes"),
    (("draft={tokens: 900}",), "draft asks for longer texts than rows are"),
])
def test_what_does_not_fit_is_refused_before_anything_is_trained(small, tmp_path, overrides, said):
    with pytest.raises(RecipeError, match=said):
        pipeline.run(small(*overrides), options=pipeline.Options(runs=tmp_path))


@pytest.mark.parametrize(("override", "said"), [
    ("data.transfer.source=rollouts", "rollouts makes texts"), ("data.transfer.source=teacher", "teacher makes texts"),
    ("draft={}", "a draft runs ahead in running text")])
def test_other_data_is_refused(override, said, tmp_path):
    with pytest.raises(RecipeError, match=said):
        pipeline.run(recipe.load("digits", [override]), options=pipeline.Options(runs=tmp_path))
