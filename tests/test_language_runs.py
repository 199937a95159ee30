"""Running text, end to end at toy size: from documents to a student that writes, which plain transformers loads."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from understudy import disk, pipeline, recipe
from understudy.cli import main
from understudy.errors import DataError, RecipeError
from understudy.evaluation import language
from understudy.evaluation.language import COLUMNS
from understudy.preprocess import passages
from understudy.stages.common import class_counts
from understudy.stages.prepare import Given, prepare
from understudy.stages.tasks.language import Documents
from understudy.store.describe import verify
from understudy.store.schema import read_header
from understudy.students import artefact

NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
WORDS = ("the cat sat", "the dog ran", "a bird sang", "the cat ran", "a dog sat")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Forty documents of a small language, some longer than a row."""
    folder, dice = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for number in range(40):
        sentences = [f"{dice.choice(WORDS)} {dice.choice(('home', 'away'))}." for _ in range(dice.randint(3, 14))]
        (folder / f"{number:02d}.txt").write_text(" ".join(sentences), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small(corpus):
    """The overrides of a small run."""

    def call(*more):
        teacher = "{kind: local, model: {arch: decoder, width: 16, layers: 1, heads: 2}, rights: {terms: own}, "
        return (
            f"data={{kind: corpus, path: '{corpus}', passage: 160, split: {{validation: 0.1, test: 0.3}}}}",
            f"teacher={teacher}train: {{epochs: 12, batch_size: 8, lr: 1e-2, {NUMERICS}}}}}",
            "student={model: {arch: decoder, width: 8, layers: 1, heads: 2}, tokenizer: {kind: bpe, size: 300}}",
            "objective=[{kind: sequence.ForwardKL}, {kind: labels.CrossEntropy, weight: 0.1}]",
            f"training={{steps: 60, batch_size: 8, lr: 1e-2, seeds: 2, threads: 1, {NUMERICS}}}",
            "store={keep: live}", "metric=bits_per_byte", *more,
        )  # fmt: skip

    return call


@pytest.fixture(scope="session")
def run(small, tmp_path_factory):
    """One run that several tests look at."""
    wanted = recipe.load("next_word", small())
    return pipeline.run(wanted, options=pipeline.Options(runs=tmp_path_factory.mktemp("runs")))


def test_the_report_says_what_a_run_on_text_found(run):
    summary, details = run.summary, run.details
    assert summary["task"] == "language" and summary["metric"] == "bits_per_byte" and not summary["higher_is_better"]
    assert summary["teacher"]["value"] < summary["trivial"] and summary["arms"]["distilled"]["mean"] < summary["trivial"]
    assert summary["examples"] == details["examples"]["test"] >= 5
    assert {one["name"] for one in details["measures"]} == {"next_token", "next_word", "next_word_of_three"}
    assert all(0 <= one["teacher"]["value"] <= 1 for one in details["measures"])
    fidelity = {row["model"]: (row["agreement"], row["kl_nats"]) for row in details["table"]}
    assert fidelity["teacher"] == (None, None)
    assert all(0 < fidelity[arm][0] <= 1 and 0 < fidelity[arm][1] < 1 for arm in ("control", "distilled"))
    assert {row["check"] for row in details["selftest"]} >= {"shifted-positions", "looks-ahead", "teacher-below-trivial", "no-op-term"}
    assert "test documents" in run.verdict and "bits per byte" in run.verdict
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Bits per byte" in page and "Next word right" in page and "test documents" in page
    assert "says what comes next" in (run.path / "student" / "README.md").read_text(encoding="utf-8")


def test_a_store_of_tokens_teaches_the_same(small, tmp_path):
    """Recorded once, asked no more: students end where those end whom the teacher itself told, up to what the store rounds."""
    results = {}
    for keep in ("live", "tokens"):
        one = (f"store={{keep: {keep}}}", f"name={keep}", "training.seeds=1", "training.control=init_only")
        wanted = recipe.load("next_word", small(*one))
        results[keep] = pipeline.run(wanted, options=pipeline.Options(runs=tmp_path)).summary
    live, stored = (results[keep]["arms"]["distilled"]["shipped"] for keep in ("live", "tokens"))
    assert results["live"]["teacher"] == results["tokens"]["teacher"]
    assert live != stored and abs(live - stored) < 0.02
    asked = []
    again = recipe.load("next_word", small("store={keep: tokens}", "name=again", "training.seeds=1", "training.control=init_only"))
    pipeline.run(again, asked.append, options=pipeline.Options(runs=tmp_path))
    assert not sum(event.data["asked"] for event in asked if event.data and "asked" in event.data)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-4), ("float16", 0.01)])
def test_a_store_of_states_teaches_the_same(small, tmp_path, dtype, apart):
    """Recorded once: students end where those end whom the teacher itself told, up to rounding, though a temperature is asked for that
    nobody named when it was recorded."""
    results, asked = {}, []
    objective = "objective=[{kind: sequence.ForwardKL, temperature: 1.7}, {kind: labels.CrossEntropy, weight: 0.1}]"
    for keep, name in (("live", "live"), ("states", "states"), ("states", "again")):
        one = (f"store={{keep: {keep}, dtype: {dtype}}}", f"name={name}", "training.seeds=1", "training.control=init_only")
        wanted = recipe.load("next_word", small(*one, *([] if name == "states" else [objective])))
        asked.clear()
        results[name] = pipeline.run(wanted, asked.append, options=pipeline.Options(runs=tmp_path)).summary
    live, again = (results[name]["arms"]["distilled"]["shipped"] for name in ("live", "again"))
    assert results["live"]["teacher"] == results["again"]["teacher"] and abs(live - again) < apart
    assert results["states"]["arms"]["distilled"]["shipped"] != again
    assert not sum(event.data["asked"] for event in asked if event.data and "asked" in event.data)
    [folder] = (place.parent for place in tmp_path.rglob("head.safetensors"))
    assert read_header(folder)[0].shape == (16,) and not verify(folder)


def test_its_figures_are_those_of_the_student_itself(run, corpus):
    """Bits per byte of the shipped student, once more from its folder and the files alone."""
    student = artefact.load(run.path / "student")
    data = prepare(recipe.load(run.path / "recipe.yaml"), Given())
    bits = size = 0.0
    for row in data.test.tolist():
        for piece in data.examples.raw[row].split("\x1e")[1:]:
            text = piece.removesuffix("\x1f")
            ids = [student.preprocess.start, *student.preprocess.tokenizer.literal.encode(text, add_special_tokens=False).ids]
            ids += [student.preprocess.end] if piece.endswith("\x1f") else []
            with torch.inference_mode():
                log_probs = torch.log_softmax(student.module(torch.tensor([ids[:-1]])).double(), -1)[0]
            bits -= float(log_probs[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum()) / math.log(2)
            size += len(text.encode())
    assert bits / size == pytest.approx(run.summary["arms"]["distilled"]["shipped"], rel=1e-4)


def test_transformers_reads_the_student_and_writes_the_same(run):
    transformers = pytest.importorskip("transformers")
    student = artefact.load(run.path / "student")
    model = transformers.AutoModelForCausalLM.from_pretrained(run.path / "student", local_files_only=True)
    reader = transformers.AutoTokenizer.from_pretrained(run.path / "student", local_files_only=True)
    prompts = ["the cat", "a bird"]
    for prompt, own in zip(prompts, student.generate(prompts, most=8), strict=True):
        given = reader(prompt, return_tensors="pt")
        theirs = model.generate(**given, max_new_tokens=8, do_sample=False)[0, given["input_ids"].shape[1] :]
        assert reader.decode(theirs, skip_special_tokens=True) == own
    rows = torch.tensor([[student.preprocess.start, 9, 10, 11]])
    with torch.inference_mode():
        assert torch.allclose(model(rows).logits, student.module(rows), atol=1e-5)


def test_a_student_writes_the_same_for_the_same_seed(run):
    student = artefact.load(run.path / "student")
    one, two = (student.generate(["the"], most=12, temperature=1.0, seed=seed) for seed in (3, 3))
    assert one == two
    assert len({student.generate(["the"], most=12, temperature=1.0, seed=seed)[0] for seed in range(6)}) > 1
    with pytest.raises(RecipeError, match="this student writes"):
        student.predict(["the cat"])
    with pytest.raises(DataError, match="leaves no room"):
        student.generate(["the cat " * 500])


def test_the_verb_prints_what_the_student_writes(run, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["generate", str(run.path / "student"), "the cat", "--most", "5", "--json"])
    assert stop.value.code == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {"prompt": "the cat", "text": artefact.load(run.path / "student").generate(["the cat"], most=5)[0]}


def test_documents_of_a_row_are_counted_apart(corpus, small):
    """Prevents: bits of one document are put down to another that shares its row."""
    data = prepare(recipe.load("next_word", small()), Given())
    test = Documents(data, data.test)
    raw = "".join(data.examples.raw[row] for row in data.test.tolist())
    assert sum(test.sizes) == len(raw.replace("\x1e", "").replace("\x1f", "").encode())
    alone = test.trivial(np.ones(data.outputs))
    for at, number in enumerate(test.numbers):
        rows = torch.tensor([row for row in data.test.tolist() if number in data.examples.items[row]])
        one = Documents(data, rows)
        again = one.trivial(np.ones(data.outputs))[list(one.numbers).index(number)]
        assert np.allclose(again, alone[at])
    assert alone[:, COLUMNS.index("positions")].sum() == sum(int((batch.labels >= 0).sum()) for batch in data.rows.batches(data.test))
    assert np.allclose(alone[:, 0], alone[:, 1] * np.log(data.outputs))
    assert language.scores("bits_per_byte", alone, test.sizes).mean() > 0


def test_a_corpus_on_disk_is_prepared_like_one_in_memory(small, monkeypatch):
    """The slow twin of what is larger than memory: the same tokens, the same documents, the same names in the cache."""
    plain = prepare(recipe.load("next_word", small()), Given())
    monkeypatch.setattr(disk, "IN_MEMORY", 0)
    monkeypatch.setattr(passages, "AT_ONCE", 7)
    found = prepare(recipe.load("next_word", small()), Given())
    assert isinstance(found.examples.raw, disk.Texts) and not isinstance(plain.examples.raw, disk.Texts)
    assert found.examples.fingerprint == plain.examples.fingerprint and found.transform == plain.transform
    assert torch.equal(found.rows.stored, plain.rows.stored) and found.notes == plain.notes
    assert torch.equal(found.test, plain.test) and np.array_equal(found.duplicates, plain.duplicates)
    mine, theirs = Documents(found, found.test), Documents(plain, plain.test)
    assert np.array_equal(mine.sizes, theirs.sizes) and np.array_equal(class_counts(found), class_counts(plain))
    batch, twin = (data.rows.batch(data.test[:3]) for data in (found, plain))
    assert torch.equal(batch.inputs, twin.inputs) and torch.equal(batch.labels, twin.labels)


def test_bytes_that_nobody_reads_are_not_counted(small):
    """Prevents: rows are cut, their bytes stay in the divisor, and every model looks better than it is."""
    data = prepare(recipe.load("next_word", small("student.tokenizer={kind: bpe, size: 300, length: 20}")), Given())
    test = Documents(data, data.test)
    read = data.preprocess.tokenizer.inner
    told = [read.decode([one for one in row.tolist() if one >= 0]) for row in data.rows.stored[data.test]]
    whole = sum(len(data.examples.raw[row]) for row in data.test.tolist())
    assert sum(test.sizes) == sum(len(text.encode()) for text in told) < 0.7 * whole
    assert "their end is not read" in data.notes[0]


@pytest.mark.parametrize(("override", "kind", "said"), [
    ("student.model={arch: mlp}", RecipeError, "the student can't answer"),
    ("student.tokenizer={kind: words}", RecipeError, "running text is told as it was written"),
    ("student.tokenizer={kind: bpe, lowercase: true}", RecipeError, "running text is told as it was written"),
    ("data.split={validation: 0.1, test: 0.02}", DataError, "too few documents"),
    ("metric=accuracy", RecipeError, "metric"),
    ("data.augment={flip: true}", RecipeError, "data.augment needs images"),
    ("store.keep=dense", RecipeError, "store.keep: dense is for other data"),
    ("store={keep: states, limit_gb: 1e-6}", DataError, "the teacher's states would take too much room"),
    ("teacher={kind: peers, count: 2}", RecipeError, "with this teacher"),
    ("teacher={kind: averaged}", RecipeError, "with this teacher"),
    ("objective=[{kind: features.Hint, layers: {model.norm: model.norm}}]", RecipeError, "with this objective"),
    ("export=[onnx]", RecipeError, "the export onnx can.t hold such a student"),
    ("training.balance=gradnorm", RecipeError, "with this training.balance"),
    ("data.transfer.source=noise", RecipeError, "noise makes numbers"),
])
def test_what_does_not_fit_is_refused_before_anything_is_trained(small, tmp_path, override, kind, said):
    with pytest.raises(kind, match=said):
        pipeline.run(recipe.load("next_word", small(override)), options=pipeline.Options(runs=tmp_path))


def test_verbs_that_are_not_there_for_text_say_so(small, run, tmp_path):
    from understudy import advice, comparison
    from understudy.stages.measure import measure

    wanted = recipe.load("next_word", small())
    for call in (
        lambda: comparison.compare(wanted, ["sequence.ReverseKL"], 2, options=pipeline.Options(runs=tmp_path), jobs=1),
        lambda: advice.advise(wanted, ["sequence.ReverseKL"], 0.5, options=pipeline.Options(runs=tmp_path)),
        lambda: measure(run.path / "student", wanted),
    ):
        with pytest.raises(RecipeError, match="is not there for running text"):
            call()
