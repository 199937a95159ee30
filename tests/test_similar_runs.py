"""Vectors of sentences, end to end at toy size: from pairs to a student that other programs load."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import torch
from scipy import stats

import understudy
from understudy import pipeline, recipe, static_embedding
from understudy.cli import main
from understudy.errors import DataError, RecipeError
from understudy.evaluation import similarity
from understudy.stages.prepare import Given, prepare
from understudy.students import sentences, static

NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
TEXTS = ["play music", "turn the light off", "unknown rain"]


@pytest.fixture(scope="session")
def given(tmp_path_factory, folders):
    """(files of pairs by part, the teacher's folder)."""
    folder = tmp_path_factory.mktemp("similar")
    return folders.pairs(folder), folders.embedder(folder / "encoder")


@pytest.fixture(scope="session")
def small(given):
    """The overrides of a small run."""

    def call(*more):
        parts, teacher = given
        return (
            f"data.path={parts['train']}", f"data.validation_path={parts['dev']}", f"data.test_path={parts['test']}",
            f"teacher.model.path={teacher}",
            f"training={{steps: 30, batch_size: 16, lr: 3e-3, seeds: 2, threads: 1, control: init_only, {NUMERICS}}}", *more,
        )  # fmt: skip

    return call


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def narrow(small, runs):
    """Two layers of three and half of the width, with a projection that is trained along."""
    wanted = recipe.load("sentence_embedding", small("student={from_teacher: {layers: 2, width: 8, inner: 12}}", "name=narrow"))
    return pipeline.run(wanted, options=pipeline.Options(runs=runs))


@pytest.fixture(scope="session")
def table(small, runs):
    """A static student."""
    wanted = recipe.load("static_embedding", small("student={from_teacher: {static: 8}}", "training.lr=1e-2", "name=table"))
    return pipeline.run(wanted, options=pipeline.Options(runs=runs))


def judged(path):
    """(the sentences' two columns, people's scores) of a file of pairs."""
    rows = [line.split("\t") for line in path.read_text().splitlines()]
    return [row[5] for row in rows], [row[6] for row in rows], np.array([float(row[4]) for row in rows])


def correlation(encode, path):
    """Spearman's, by scipy, of the cosines that a function texts -> vectors gives."""
    first, second, gold = judged(path)
    one, other = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (encode(first), encode(second)))
    return stats.spearmanr(np.round((one * other).sum(1), 6), gold)[0]


@pytest.mark.slow
def test_the_report_says_what_a_run_on_pairs_found(narrow):
    summary, details = narrow.summary, narrow.details
    assert (summary["task"], summary["metric"], summary["trivial"], summary["examples"]) == ("embedding", "spearman", 0.0, 60)
    assert summary["control"] == "init_only" and set(summary["arms"]) == {"control", "distilled"}
    assert [one["name"] for one in details["measures"]] == ["pearson", "like_teacher"]
    assert details["worst_slice"]["examples"] == 15 and details["latency"]["rates"]["student"] > 0
    apart = [abs(row["distilled"] - row["teacher"]) for row in details["pairs"]["rows"]]
    assert apart == sorted(apart, reverse=True) and len(apart) == 12
    assert "test pairs" in narrow.verdict and "Spearman correlation 0." in narrow.verdict
    page, card = ((narrow.path / name).read_text(encoding="utf-8") for name in ("report.html", "student/README.md"))
    assert "Sentences a second" in page and "same answer as the teacher" not in page and details["pairs"]["rows"][0]["first"] in page
    assert "vectors of sentences, 8 numbers each" in card and "student.encode" in card


@pytest.mark.slow
def test_rows_that_are_about_classes_are_not_in_the_self_test(narrow):
    found = {row["check"]: row["result"] for row in narrow.details["selftest"]}
    assert {"vector-width", "zero-vectors", "constant-vectors", "misaligned-targets", "no-op-term", "sensitivity"} <= set(found)
    assert not {"class-count", "class-order", "constant-teacher", "zero-teacher", "probabilities-as-logits", "teacher-below-trivial",
                "overlap"} & set(found)
    assert set(found.values()) <= {"ok", "skipped"}


@pytest.mark.slow
def test_the_teacher_is_judged_by_the_vectors_of_its_folder(narrow, given):
    """Slow twin: the folder's own pooling, and scipy."""
    parts, teacher = given
    assert narrow.summary["teacher"]["value"] == pytest.approx(correlation(lambda texts: sentences.vectors(teacher, texts), parts["test"]))


@pytest.mark.slow
def test_the_shipped_student_is_the_one_in_the_report(narrow, table, given):
    for run in (narrow, table):
        found = correlation(understudy.load(run.path / "student").encode, given[0]["test"])
        assert found == pytest.approx(run.summary["arms"]["distilled"]["shipped"], abs=1e-6)


@pytest.mark.slow
def test_the_control_of_a_static_student_is_the_table_without_data(table, given):
    """What distilling adds is measured against what the teacher's vocabulary gives alone."""
    parts, teacher = given
    alone = correlation(static.distil(teacher, dimensions=8).model.encode, parts["test"])
    assert table.summary["arms"]["control"]["seeds"] == pytest.approx([alone, alone], abs=1e-6)
    assert table.summary["arms"]["distilled"]["seeds"] != pytest.approx([alone, alone], abs=1e-3)


@pytest.mark.slow
def test_transformers_reads_the_student_and_the_projection_is_not_in_it(narrow):
    import transformers

    folder = narrow.path / "student"
    model, lacking = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not lacking["unexpected_keys"] and all(name.startswith("pooler.") for name in lacking["missing_keys"])
    read = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model.eval()(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
    mask = read["attention_mask"][:, :, None]
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    np.testing.assert_allclose(understudy.load(folder).encode(TEXTS), pooled.numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_folder_says_how_a_vector_is_made_as_sentence_transformers_writes_it(narrow, table):
    kinds = [one["type"] for one in json.loads((narrow.path / "student" / "modules.json").read_text())]
    assert kinds == [f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")]
    pooling = json.loads((narrow.path / "student" / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 8 and pooling["pooling_mode_mean_tokens"] is True
    exported = narrow.path / "exports" / "safetensors"
    assert (exported / "1_Pooling" / "config.json").is_file() and (exported / "modules.json").is_file()
    kinds = [one["type"].rpartition(".")[2] for one in json.loads((table.path / "student" / "modules.json").read_text())]
    config = json.loads((table.path / "student" / "config.json").read_text())
    assert kinds == ["StaticEmbedding", "Normalize"] and config["model_type"] == "model2vec" and config["normalize"] is True


@pytest.mark.slow
def test_numpy_alone_reads_the_static_student(table):
    folder = table.path / "student"
    found = static_embedding.load(folder).encode([*TEXTS, "", "never"])
    np.testing.assert_allclose(found, understudy.load(folder).encode([*TEXTS, "", "never"]), atol=1e-6)
    assert static_embedding.load(folder).save(table.path / "again", "sentence-transformers").is_dir()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="needs the sentence-transformers package")
def test_sentence_transformers_gives_the_students_vectors(narrow, table):
    from sentence_transformers import SentenceTransformer

    for run in (narrow, table):
        folder = run.path / "student"
        np.testing.assert_allclose(SentenceTransformer(str(folder), device="cpu").encode(TEXTS), understudy.load(folder).encode(TEXTS),
                                   atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("model2vec") is None, reason="needs the model2vec package")
def test_model2vec_gives_the_static_students_vectors(table):
    from model2vec import StaticModel

    folder = table.path / "student"
    np.testing.assert_allclose(StaticModel.from_pretrained(folder).encode(TEXTS), understudy.load(folder).encode(TEXTS), atol=1e-5)


@pytest.mark.slow
def test_predict_shows_what_is_near(narrow, tmp_path, capsys):
    file = tmp_path / "texts.txt"
    file.write_text("\n".join([*TEXTS, "music play"]))
    with pytest.raises(SystemExit, match="0"):
        main(["predict", str(narrow.path / "student"), str(file), "--top", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["row", "text", "1.", "nearest"] and "1.000 music play" in lines[1]
    with pytest.raises(SystemExit, match="0"):
        main(["predict", str(narrow.path / "student"), str(file), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert [one["text"] for one in said] == [*TEXTS, "music play"] and {len(one["vector"]) for one in said} == {8}


@pytest.mark.slow
def test_what_a_student_is_not_asked_for_is_refused(narrow):
    student = understudy.load(narrow.path / "student")
    with pytest.raises(RecipeError, match="encode"):
        student.predict(TEXTS)
    with pytest.raises(RecipeError, match="does not write"):
        student.generate(TEXTS)
    with pytest.raises(DataError, match="no texts"):
        student.encode("play")
    assert student.encode([]).shape == (0, 8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [("student={model: {arch: bag, width: 6}, tokenizer: {kind: bpe, size: 300}}", "objective={kind: embeddings.MSE, weight: 10}"),
     ("student={from_teacher: {layers: 1}}", "objective={kind: relations.DistanceAngle, layers: {vector: vector}}", "store.keep=live"),
     ("student={from_teacher: {layers: 1}, tokenizer: {kind: pruned}}", "objective={kind: embeddings.MarginMSE}", "data.split.test=0.3",
      "data.validation_path=null", "data.test_path=null", "data.split.validation=0.2", "export=[safetensors, onnx]")],
    ids=["bag", "relations, live", "drawn split"])
def test_other_students_objectives_stores_and_splits_come_through(small, tmp_path, more):
    run = pipeline.run(recipe.load("sentence_embedding", small("training.steps=4", *more)), options=pipeline.Options(runs=tmp_path))
    assert run.summary["arms"]["distilled"]["verdict"] in ("helps", "hurts", "no evidence")
    assert np.isfinite(run.student.encode(TEXTS)).all()
    assert {row["format"] for row in run.details["exports"]} == {path.name for path in (run.path / "exports").iterdir()}


def prepared(small, *more):
    return prepare(recipe.load("sentence_embedding", small(*more)), Given())


def test_nobody_learns_from_a_sentence_of_a_test_pair(small, given):
    data = prepared(small)
    learnt = set(data.examples.raw[data.distilled.numpy()].tolist())
    for part in ("dev", "test"):
        first, second, _ = judged(given[0][part])
        assert not learnt & {*first, *second}
    assert data.outputs == 16 and data.task == "embedding" and any("no score" in note for note in data.notes)


def test_a_static_student_reads_what_is_unknown_as_nothing(small):
    data = prepare(recipe.load("static_embedding", small("student={from_teacher: {static: 8}}")), Given())
    read = data.preprocess
    assert read.tokenizer.inner.token_to_id("[CLS]") is None and read.pad == read.tokenizer.inner.token_to_id("[UNK]")


REFUSED = {
    "objective={kind: logits.SoftTargets}": "objective",
    "objective=[{kind: embeddings.Cosine}, {kind: labels.CrossEntropy}]": "objective",
    "training.control=no_teacher": "init_only",
    "teacher.train={epochs: 1}": "trained already",
    "teacher.model={arch: bag}": "one teacher that gives vectors",
    "metric=accuracy": "another task's",
    "store.keep=topk": "store.keep",
    "data.transfer.labels=0.5": "transfer",
    "training.balance=gradnorm": "balance",
    "student={from_teacher: {layers: 9}}": "more layers",
    "student={from_teacher: {static: 17}}": "static",
    "student={from_teacher: {static: 8}, tokenizer: {kind: bpe}}": "tokens",
    "student={from_teacher: {static: 8, layers: 1}}": "two things",
    "student={from_teacher: {width: 8}}": "two things",
    "student={from_teacher: {layers: 2, width: 8, importance: taylor}}": "importance taylor needs labels",
    "student={from_teacher: {static: 8, importance: magnitude}}": "importance chooses nothing",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_does_not_go_together_is_refused_before_compute(small, tmp_path, override):
    with pytest.raises(RecipeError, match=REFUSED[override]):
        pipeline.run(recipe.load("sentence_embedding", small(override)), options=pipeline.Options(runs=tmp_path))


def test_too_few_pairs_are_refused(small, tmp_path, folders):
    few = folders.pairs(tmp_path, test=12)["test"]
    with pytest.raises(DataError, match="too few pairs"):
        prepared(small, f"data.test_path={few}")


@pytest.mark.slow
def test_objectives_on_vectors_are_not_for_classes(toy, tmp_path):
    with pytest.raises(RecipeError, match="matches vectors"):
        pipeline.run(toy.recipe("objective={kind: embeddings.Cosine}"), options=pipeline.Options(runs=tmp_path))


def test_a_comparison_of_methods_is_refused(small, tmp_path):
    from understudy import comparison

    wanted = recipe.load("sentence_embedding", small())
    with pytest.raises(RecipeError, match="pairs of sentences"):
        comparison.compare(wanted, ["embeddings.Cosine"], 2, options=pipeline.Options(runs=tmp_path), jobs=1)


def test_the_validation_value_is_spearmans(small):
    from understudy.stages import tasks
    from understudy.stages.common import make_model
    from understudy.stages.tasks.embedding import Judged
    from understudy.training.numerics import Numerics

    data = prepared(small, "student={model: {arch: bag, width: 6}, tokenizer: {kind: bpe, size: 300}}")
    model = make_model({"arch": "bag", "width": 6}, data, Given(), 0)
    found = tasks.validator({"metric": "spearman"}, data, Numerics())(model)
    pairs = Judged(data, data.validation, "validation")
    vectors = model.eval()(data.rows.inputs(data.validation)).detach().numpy()
    assert found["spearman"] == pytest.approx(stats.spearmanr(similarity.cosines(vectors, pairs.rows), pairs.scores)[0], abs=1e-6)
    assert 35 < len(pairs.scores) <= 40
