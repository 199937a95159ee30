"""Texts, end to end at toy size: every kind of student under a teacher with a tokenizer of its own; transformers reads the folder too."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch

from understudy.data import from_arrays
from understudy.datasets.text import Dataset
from understudy.errors import DataError, RecipeError
from understudy.stages.prepare import Given, prepare
from understudy.stages.reading import filled
from understudy.students import artefact

SAID = {
    "music": ("play music", "play the music", "stop playing", "music on"),
    "light": ("turn the light on", "turn off the light", "light off"),
    "bank": ("send money", "send money to the bank", "the bank"),
}
NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
STUDENTS = {
    "bag": "student={model: {arch: bag, width: 8}}",
    "words and a textcnn": "student={model: {arch: textcnn, width: 8, filters: 4}, tokenizer: {kind: words, size: 300}}",
    "bytes and a bilstm": "student={model: {arch: bilstm, width: 8, hidden: 4}, tokenizer: {kind: bpe, size: 400, length: 9}}",
    "the teacher's own kind": "student={model: {arch: pretrained, path: FOLDER}}",
    "a fresh transformer": "student={model: {arch: pretrained, config: {model_type: bert, hidden_size: 8, num_hidden_layers: 1, "
                           "num_attention_heads: 2, intermediate_size: 16}}, tokenizer: {kind: pruned}}",
    "one layer": "student={from_teacher: {layers: 1}}",
    "a narrow layer": "student={from_teacher: {layers: [1], width: 8, inner: 8}, tokenizer: {kind: pruned}}",
    "a narrow layer by its slopes": "student={from_teacher: {layers: [1], width: 8, inner: 8, importance: taylor}}",
}


@pytest.fixture(scope="session")
def given():
    dice = random.Random(0)
    kinds = [dice.choice(list(SAID)) for _ in range(240)]
    texts = [f"{dice.choice(SAID[kind])} {dice.choice(('please', 'now', 'soon', ''))} {at}" for at, kind in enumerate(kinds)]
    return Given(examples=from_arrays(texts, kinds))


@pytest.fixture(scope="session")
def bert(folders, tmp_path_factory):
    return folders.encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def small(toy, bert):
    """The overrides of a small run."""

    def call(student, *more):
        train = f"train: {{epochs: 8, lr: 3e-3, batch_size: 16, {NUMERICS}}}"
        teacher = f"{{kind: local, model: {{arch: pretrained, path: {bert}}}, {train}"
        return (
            "data={kind: given, split: {validation: 0.1, test: 0.3}}", f"teacher={teacher}, rights: {{terms: own}}}}",
            student.replace("FOLDER", str(bert)),
            f"training={{steps: 6, batch_size: 16, lr: 1e-2, seeds: 1, threads: 1, {NUMERICS}}}", *more,
        )  # fmt: skip

    return call


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_of_texts_learns_ships_and_answers(toy, small, given, name):
    run = toy.run(*small(STUDENTS[name]), given=given)
    student = artefact.load(run.path / "student")
    texts = ["play music", "", "an entirely other text, and a long one at that, with many words that nobody knew before"]
    found = student.predict(texts)
    assert found.shape == (3, 3) and np.isfinite(found).all()
    np.testing.assert_allclose(student.predict(texts[:1]), found[:1], atol=1e-6, err_msg="whatever else is in the batch")
    trained = toy.trained()
    assert toy.run(*small(STUDENTS[name]), given=given).path == run.path and "distilled, seed 0" in trained
    assert not toy.trained(), "the same recipe trains nothing again"


def test_a_configuration_has_a_row_for_each_token_and_no_more():
    """Prevents: 30,522 rows for a few hundred words, as is the library's default; an index beyond the last row in the middle of a run."""
    spec = {"arch": "pretrained", "config": {"model_type": "bert"}}
    assert filled(spec, 300, 7)["config"] == {"model_type": "bert", "vocab_size": 300, "pad_token_id": 7}
    assert filled({**spec, "config": {"vocab_size": 512}}, 300, 7)["config"]["vocab_size"] == 512
    for wrong in (299, None, "512"):
        with pytest.raises(RecipeError, match=f"got vocab_size: {wrong!r}, expected 300"):
            filled({**spec, "config": {"vocab_size": wrong}}, 300, 7)


@pytest.mark.parametrize("arch", ["causal", "masked"])
def test_a_configuration_keeps_what_tells_documents_apart(arch):
    """Prevents: the documents of a row read each other, in a student that is built from a configuration and in no other."""
    said = filled({"arch": arch, "config": {"model_type": "llama"}}, 300, 7, 2)
    assert said["start"] == 2 and said["config"]["vocab_size"] == 300


@pytest.mark.slow
@pytest.mark.parametrize("name", ["the teacher's own kind", "a narrow layer"])
def test_transformers_reads_the_folder_alone(toy, small, given, name):
    """Prevents: a student in the Hugging Face layout that only understudy can read, or whose classes have lost their names."""
    import transformers

    run = toy.run(*small(STUDENTS[name]), given=given)
    folder = run.path / "student"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    texts = ["play the music", "send money to the bank please"]
    with torch.inference_mode():
        theirs = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.softmax(-1).numpy()
    np.testing.assert_allclose(artefact.load(folder).predict(texts), theirs, atol=1e-5)
    assert [model.config.id2label[at] for at in range(3)] == sorted(SAID)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDENTS)
def test_it_is_exported(toy, small, given, name):
    """Texts of one token and of many: the number of tokens is free in the file."""
    import onnxruntime

    run = toy.run(*small(STUDENTS[name], "export=[safetensors, onnx]"), given=given)
    student = artefact.load(run.path / "student")
    session = onnxruntime.InferenceSession((run.path / "exports/onnx/model.onnx").read_bytes())
    for texts in (["play music"], ["a", "turn the light on and send all of the money to the bank"]):
        tokens = student.preprocess.normalise(student.preprocess.encode(texts)).astype(np.int32)
        found = session.run(["logits"], {"input": tokens})[0]
        np.testing.assert_allclose(found, student.logits(student.preprocess.encode(texts)), atol=1e-4)
    assert (run.path / "exports/safetensors/tokenizer.json").exists()


@pytest.mark.slow
def test_a_student_of_texts_is_trained_on_with_its_rounding(toy, small, given):
    """Its table of token vectors is rounded in training and in the file; a transformer is refused before anything is trained."""
    more = ("compress.quantize={epochs: 2}", "export=[{kind: onnx_int8, method: static, drop: 0.5, agreement: 0.5, calls: 2}]")
    words = "student={model: {arch: textcnn, width: 16, filters: 4}, tokenizer: {kind: words, size: 300}}"
    run = toy.run(*small(words, *more), given=given)
    found, [exported] = run.details["quantised"], run.details["exports"]
    assert [row["name"] for row in found["rows"]] == ["float", "after", "labels", "taught"]
    assert "static, trained on" in {row["method"] for row in exported["candidates"] if "bytes" in row}
    assert {"convs.0", "head"} <= set(artefact.read_config(run.path / "aware")["extra"]["learned_ranges"])
    for student, why in ((STUDENTS["one layer"], "cut out of its teacher"), (STUDENTS["the teacher's own kind"], "by their names")):
        with pytest.raises(RecipeError, match=why):
            toy.run(*small(student, "name=other", *more), given=given)


@pytest.mark.slow
def test_layers_are_matched_between_different_tokenizers(toy, small, given):
    """A vector of the whole text has no tokens: it may be matched, whoever reads how."""
    hint = "objective=[{kind: features.Hint, layers: {layers.0: model.bert.pooler}}, {kind: labels.CrossEntropy}]"
    run = toy.run(*small("student={model: {arch: bag, width: 8, hidden: [6]}, tokenizer: {kind: words, size: 300}}", hint), given=given)
    assert "Hint/mean" in (run.path / "metrics.jsonl").read_text()


def test_each_model_reads_with_its_own_tokenizer(toy, small, given, bert):
    data = prepare(toy.recipe(*small(STUDENTS["words and a textcnn"])), given)
    theirs = data.read_by({"arch": "pretrained", "path": str(bert)})
    assert theirs.preprocess.vocabulary != data.preprocess.vocabulary and theirs.transform != data.transform
    assert torch.equal(theirs.rows.labels, data.rows.labels) and torch.equal(theirs.distilled, data.distilled)
    assert data.read_by({"arch": "bag"}) is data
    text = data.examples.raw[5]
    for one in (data, theirs):
        assert one.rows.stored[5].tolist() == one.preprocess.encode([text])[0].tolist()
    short = torch.tensor([int((data.rows.stored != data.rows.pad).sum(1).argmin())])
    assert data.rows.inputs(short).shape[1] < data.shape[0], "a batch is as long as its longest text"


@pytest.mark.parametrize(("student", "word"), [
    ("student={from_teacher: {layers: 9}}", "more layers"), ("student={from_teacher: {layers: 1, width: 7}}", "multiple of 8"),
    ("student={from_teacher: {layers: 1}, tokenizer: {kind: bpe}}", "reads other tokens"),
    ("student={from_teacher: {layers: 1}, model: {arch: bag}}", "two models"),
    ("student={model: {arch: mlp}}", "example"), ("student={model: {arch: cnn}}", "images")])
def test_what_can_t_be_is_refused_before_a_teacher_is_trained(toy, small, given, student, word):
    with pytest.raises(RecipeError, match=word):
        toy.run(*small(student), given=given)
    assert "teacher" not in toy.trained()


@pytest.mark.slow
def test_slopes_are_taken_of_labels_that_the_recipe_shows_alone(toy, small, given):
    """Prevents: with few labels a start is taken from the cache that was chosen with all of them."""
    narrow = "student={from_teacher: {layers: [1], width: 8, inner: 8, importance: %s}}"
    for kind, starts in (("taylor", 2), ("activation", 3)):
        for labels in (1.0, 0.1):
            toy.run(*small(narrow % kind, f"data.transfer.labels={labels}", f"name={kind}{labels}"), given=given)
        assert len(list((toy.runs / "_cache").glob("start-*"))) == starts


def test_an_importance_that_chooses_nothing_is_refused(toy, small, given):
    with pytest.raises(RecipeError, match="importance chooses nothing: got taylor, and the teacher's own width, heads and inner"):
        toy.run(*small("student={from_teacher: {layers: 1, width: 16, importance: taylor}}"), given=given)


def test_from_teacher_needs_a_pretrained_teacher(toy, given):
    other = "teacher={kind: local, model: {arch: bag}, train: {epochs: 1}, rights: {terms: own}}"
    with pytest.raises(RecipeError, match="one pretrained teacher"):
        toy.run("data={kind: given, split: {test: 0.3}}", other, "student={from_teacher: {layers: 1}}", given=given)


def test_parts_classes_and_rows_without_a_class(tmp_path):
    """Prevents: the rows of a class that is left out, or of another part, shift the labels of those that stay."""
    parts = {part: [[f"{name} {part} {at}", name] for name in ("b", "out", "a") for at in range(3)] for part in ("train", "val", "test")}
    (tmp_path / "a.json").write_text(json.dumps(parts | {"out_train": [["out of all", "out"]], "extra_train": [["nobody knows", None]]}))
    found = Dataset(str(tmp_path / "a.json"), leave_out=("out",)).load()
    assert found.classes == ("a", "b") and len(found) == 3 * 6 + 1
    for text, label, part in zip(found.raw.tolist(), found.labels.tolist(), found.split.tolist(), strict=True):
        if label < 0:
            assert (text, part) == ("nobody knows", "train")
        else:
            assert text.split()[0] == found.classes[label] and part.startswith(text.split()[1])


def test_a_text_without_a_class_is_for_the_distilled_student_alone(toy, tmp_path):
    rows = [f"{SAID[name][at % 3]} {at},{name}" for name in SAID for at in range(12)]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *rows]))
    (tmp_path / "more.csv").write_text("text\nplay it\nsend it\n")
    data = f"{{kind: text, path: {tmp_path}/a.csv, unlabelled_path: {tmp_path}/more.csv, split: {{test: 0.5}}}}"
    found = prepare(toy.recipe(f"data={data}", "student={model: {arch: bag}}"), Given())
    alone = sorted(set(found.distilled.tolist()) - set(found.control.tolist()))
    assert [str(found.examples.raw[row]) for row in alone] == ["play it", "send it"]
    assert not set(alone) & set(found.teacher.tolist())


@pytest.mark.parametrize(("content", "words"), [
    (b"text,label\nplay,music\n\" \",music\nlight,light\n", ["1 texts are empty", "'000001-"]),
    (b"text,label\nplay,music\ncaf\xe9,music\n", ["line 3", "UTF-8"]),
    (b"sentence,label\nplay,music\nlight,light\n", ["no column 'text'", "sentence"])])
def test_a_file_that_can_t_be_learnt_from(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(DataError) as caught:
        Dataset(str(tmp_path / "a.csv")).load()
    assert all(word in str(caught.value) for word in words)


@pytest.mark.slow
def test_texts_out_of_scope_are_asked_of_everybody_and_learnt_by_nobody(toy, small, tmp_path):
    """The report's figures against what the shipped student's folder says of the same texts."""
    dice = random.Random(1)

    def rows(count, part):
        return [(f"{dice.choice(SAID[kind])} {part} {at}", kind) for at in range(count) for kind in SAID]

    strange = [(f"why is the sky so {dice.choice(('blue', 'high'))} {at}", "strange") for at in range(30)]
    parts = {"train": rows(120, "") + strange[:10], "val": rows(12, "please"), "test": rows(15, "now") + strange[10:]}
    (tmp_path / "a.json").write_text(json.dumps(parts))
    data = f"data={{kind: text, path: {tmp_path / 'a.json'}, outside: [strange]}}"
    run = toy.run(*small(STUDENTS["bag"]), data, "teacher.train.lr=1e-2")
    details = json.loads((run.path / "details.json").read_text())
    figures = {one["name"]: one for one in details["measures"]}
    assert set(figures) == {"outside_told_apart", "outside_noticed", "inside_passed"}
    assert details["examples"]["outside"] == 20 and details["examples"]["test"] == 45 and "strange" not in run.summary.get("classes", ())
    sure = {part: artefact.load(run.path / "student").predict([text for text, _ in rows]).max(1)
            for part, rows in (("in", parts["test"][:45]), ("out", strange[10:]), ("val", parts["val"]))}
    pairs = [(one > other) + 0.5 * (one == other) for one in sure["in"] for other in sure["out"]]
    assert figures["outside_told_apart"]["distilled"]["value"] == pytest.approx(np.mean(pairs), abs=1e-6)
    least = np.sort(sure["val"])[int(0.05 * (len(sure["val"]) - 1))]
    assert figures["outside_noticed"]["distilled"]["value"] == pytest.approx(np.mean(sure["out"] < least), abs=0.051)
