"""Runs in which teacher and student read running text with different tokens, end to end at toy size."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from understudy import pipeline, recipe
from understudy.errors import DataError, RecipeError
from understudy.selftest.language import tokenizers
from understudy.stages import teach
from understudy.stages.check import subject
from understudy.stages.prepare import Given, prepare
from understudy.stages.tasks.language import Documents
from understudy.store.reader import Reader
from understudy.store.schema import Header
from understudy.teachers import local

NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
OTHER = "cathedral dogma birding running sitting theatre homeward awaken " * 30


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, folders):
    """Forty documents of a small language, and beside them another text."""
    folder = tmp_path_factory.mktemp("corpus")
    folders.documents(folder / "text")
    (folder / "other.txt").write_text(OTHER, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def small(corpus):
    """The overrides of a small run."""

    def call(*more):
        tokenizer = f"{{kind: bpe, size: 320, corpus: {{path: '{corpus / 'other.txt'}'}}}}"
        model = "{arch: decoder, width: 24, layers: 1, heads: 2}"
        teacher = f"{{kind: local, model: {model}, tokenizer: {tokenizer}, rights: {{terms: own}}, "
        return (
            f"data={{kind: corpus, path: '{corpus / 'text'}', passage: 160, split: {{validation: 0.1, test: 0.3}}}}",
            f"teacher={teacher}train: {{epochs: 40, batch_size: 8, lr: 2e-2, {NUMERICS}}}}}",
            "student={model: {arch: decoder, width: 12, layers: 1, heads: 2}, tokenizer: {kind: bpe, size: 300}}",
            "objective=[{kind: sequence.ForwardKL}, {kind: labels.CrossEntropy, weight: 0.1}]",
            f"training={{steps: 60, batch_size: 8, lr: 2e-2, seeds: 1, threads: 1, {NUMERICS}}}",
            "store={keep: tokens}", "metric=bits_per_byte", *more,
        )  # fmt: skip

    return call


@pytest.fixture(scope="session")
def runs(small, tmp_path_factory):
    """{placement: a run}, which share teacher and control."""
    folder = tmp_path_factory.mktemp("runs")
    wanted = {keep: recipe.load("cross_tokenizer", small(f"store.keep={keep}", f"name={keep}")) for keep in ("tokens", "live")}
    return {keep: pipeline.run(one, options=pipeline.Options(runs=folder)) for keep, one in wanted.items()}


def test_the_report_says_what_is_aligned_and_what_is_dropped(runs):
    for run in runs.values():
        (row,) = [row for row in run.details["selftest"] if row["check"] == "tokenizer"]
        assert row["result"] == "ok" and "of characters aligned" in row["figure"] and "of probability dropped" in row["figure"]
        assert any("tokenizer of its own" in note and "measured in its own tokens" in note for note in run.details["notes"])
        assert {row["model"]: row["agreement"] for row in run.details["table"]} == {"teacher": None, "control": None, "distilled": None}
        assert run.summary["teacher"]["value"] < run.summary["trivial"]
        assert run.summary["arms"]["distilled"]["mean"] < run.summary["trivial"]
        assert "how alike" in (run.path / "report.html").read_text(encoding="utf-8").lower()


def test_a_store_teaches_what_the_teacher_teaches(runs):
    """The translated rows are what is recorded: students end alike, up to what the store rounds."""
    live, stored = (runs[keep].summary["arms"]["distilled"]["shipped"] for keep in ("live", "tokens"))
    assert runs["live"].summary["teacher"] == runs["tokens"].summary["teacher"]
    assert live != stored and abs(live - stored) < 0.02


def test_the_store_says_whose_tokens_it_holds(runs, small):
    data = prepare(recipe.load("cross_tokenizer", small()), Given())
    entry = recipe.load("cross_tokenizer", small()).teacher[0].options
    own = data.read_by(entry["model"], entry["tokenizer"])
    (folder,) = (runs["tokens"].path.parent / "_cache").glob("store-*")
    header = Reader(folder).header
    assert header.tokenizer == data.preprocess.tokenizer.fingerprint
    assert header.translated_from == own.preprocess.tokenizer.fingerprint != header.tokenizer
    assert own.outputs != data.outputs


def test_the_teachers_bits_are_those_of_its_own_tokens(runs, small, tmp_path):
    """Once more, from the weights that were trained: over the bytes of the test documents, in the teacher's tokens."""
    wanted = recipe.load("cross_tokenizer", small())
    data = prepare(wanted, Given())
    entry = wanted.teacher[0].options
    own = data.read_by(entry["model"], entry["tokenizer"])
    module = teach.module_of(recipe.resolved(wanted)["teacher"][0], own, Given())
    weights = [path for path in (runs["tokens"].path.parent / "_cache").glob("teacher-*/model.safetensors")]
    teach.load_weights(module, weights[0])
    test = Documents(own, data.test)
    told = test.heard(local.Teacher(module, "again"))
    bits = told[:, 0].sum() / torch.log(torch.tensor(2.0)).item() / test.sizes.sum()
    assert bits == pytest.approx(runs["tokens"].summary["teacher"]["value"], rel=1e-5)


def test_universal_logit_distillation_runs_beside_it(small, tmp_path):
    objective = "objective=[{kind: sequence.ULD}, {kind: labels.CrossEntropy}]"
    for keep in ("live", "tokens"):
        wanted = recipe.load("cross_tokenizer", small(objective, f"store={{keep: {keep}}}", "training.control=init_only", f"name={keep}"))
        run = pipeline.run(wanted, options=pipeline.Options(runs=tmp_path))
        assert run.summary["arms"]["distilled"]["mean"] < run.summary["trivial"]


def test_a_table_of_other_tokens_is_a_fault(small):
    """Prevents: a store, or a teacher, of other tokens is taken for this one, number by number."""
    wanted = recipe.load("cross_tokenizer", small())
    tree = recipe.resolved(wanted)
    data = prepare(wanted, Given())
    own = data.read_by(tree["teacher"][0]["model"], tree["teacher"][0]["tokenizer"])
    module = teach.module_of(tree["teacher"][0], own, Given())
    taught = teach.Taught(local.Teacher(module, "t"), teach.size_of(module, own.example()), [], (module,))
    taught = teach.translated(tree, data, own, taught)
    header = Header(keep="tokens", dtype="packed", k=60, classes=data.outputs, temperatures=(1.0,), teacher="t", data="d", transform="x",
                    tokenizer=data.preprocess.tokenizer.fingerprint, translated_from=own.preprocess.tokenizer.fingerprint)

    def looked(taught, **changes):
        changed = Header(**{**{name: getattr(header, name) for name in Header.__dataclass_fields__}, **changes})
        return tokenizers(subject(tree, data, taught, taught.fixed, changed, Given(), [], None))

    assert looked(taught).result == "ok"
    assert looked(taught, tokenizer="another").result == "fault"
    assert looked(taught, translated_from="").result == "fault"
    plain = teach.Taught(taught.own.teacher, taught.size, [], (module,))
    assert looked(plain, translated_from="").result == "ok"
    assert looked(plain).result == "fault"


@pytest.mark.parametrize(("override", "kind", "said"), [
    ("objective=[{kind: logits.MSE}]", RecipeError, "logits.MSE can't be computed from what a teacher with another tokenizer gives"),
    ("teacher.tokenizer={kind: words}", RecipeError, "running text is told as it was written"),
    ("teacher.tokenizer={kind: folder}", RecipeError, "teacher.tokenizer: folder needs a folder"),
    ("teacher.tokenizer={knd: bpe}", RecipeError, "kind"),
    ("teacher.tokenizer={kind: bpe, corpus: {pth: x}}", RecipeError, "path"),
    ("teacher.tokenizer={kind: bpe, corpus: {pattern: 'nowhere/*.py'}}", DataError, "no such files"),
    ("student.tokenizer={kind: bpe, corpus: {path: nowhere}}", DataError, "holds no files of text"),
])
def test_what_does_not_fit_is_refused_before_anything_is_trained(small, tmp_path, override, kind, said):
    with pytest.raises(kind, match=said):
        pipeline.run(recipe.load("cross_tokenizer", small(override)), options=pipeline.Options(runs=tmp_path))
    assert not list(tmp_path.glob("_cache/teacher-*/model.safetensors"))


# --- models of the transformers library


@pytest.fixture(scope="session")
def pretrained(corpus, tmp_path_factory):
    """Folders of a causal model whose vocabulary was rounded up, of an encoder, and of a body without an output layer, one tokenizer."""
    transformers = pytest.importorskip("transformers")
    from understudy import tokens

    made = tokens.train("bpe", [path.read_text() for path in (corpus / "text").glob("*.txt")], 300, lowercase=False, closed=False)
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    sizes = {"vocab_size": made.size + 4, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
             "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # fmt: skip
    causal = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=False))
    models = {"causal": causal, "body": causal.model,
              "encoder": transformers.BertForMaskedLM(transformers.BertConfig(**{**sizes, "is_decoder": False}))}
    for name, model in models.items():
        model.save_pretrained(folder / name)
        (folder / name / "tokenizer.json").write_text(made.text, encoding="utf-8")
        (folder / name / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]"}))
    return folder


def padded(source, target):
    """Weights as somebody would publish them who rounds the vocabulary up."""
    state = load_file(source)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], 0.1 * torch.ones(4, state[name].shape[1])])
    save_file(state, target)


@pytest.mark.slow
def test_a_vocabulary_that_was_rounded_up_needs_no_flag(small, pretrained, tmp_path):
    """Teacher and student have four rows more than the tokenizer has tokens: what lies there is left out, and the report says how much."""
    model = f"model: {{arch: causal, path: {pretrained / 'causal'}}}"
    trained = tmp_path / "trained.safetensors"
    for name, more in {"trained": f"train: {{epochs: 20, batch_size: 8, lr: 1e-2, {NUMERICS}}}", "loaded": f"weights: {trained}"}.items():
        teacher = f"{{kind: local, {model}, rights: {{terms: own}}, {more}}}"
        wanted = recipe.load("cross_tokenizer", small(f"teacher={teacher}", f"name={name}", f"student={{{model}}}"))
        run = pipeline.run(wanted, options=pipeline.Options(runs=tmp_path))
        (row,) = [row for row in run.details["selftest"] if row["check"] == "tokenizer"]
        assert ("of its probability lay in padding" in row["figure"]) == (name == "loaded")
        size = run.student.preprocess.vocabulary
        assert f"{size} tokens for all" in row["figure"]
        assert run.student.module.head.out_features == size
        assert json.loads((run.path / "student" / "config.json").read_text())["vocab_size"] == size
        if name == "trained":
            padded(next((tmp_path / "_cache").glob("teacher-*/model.safetensors")), trained)


@pytest.mark.parametrize("train", [True, False])
def test_padding_is_left_out_of_the_softmax(small, pretrained, train):
    """What remains is the teacher's distribution given that no padding comes, and how much lay there is what it was."""
    more = f"train: {{epochs: 1, {NUMERICS}}}" if train else f"weights: {pretrained / 'causal'}"
    teacher = f"{{kind: local, model: {{arch: causal, path: {pretrained / 'causal'}}}, rights: {{terms: own}}, {more}}}"
    wanted = recipe.load("cross_tokenizer", small(f"teacher={teacher}", "student.tokenizer={kind: auto}"))
    tree, data = recipe.resolved(wanted), prepare(wanted, Given())
    module = teach.module_of(tree["teacher"][0], data, Given())
    inputs = data.rows.inputs(data.distilled[:8])
    with torch.inference_mode():
        before = module(inputs).double()
        mass = teach.trimmed(module, data)
        after = module(inputs).double()
    size = data.outputs
    assert before.shape[-1] == size + 4 and after.shape[-1] == size
    assert torch.allclose(torch.log_softmax(after, -1), torch.log_softmax(before[..., :size], -1), atol=1e-6)
    counted = data.rows.batch(data.distilled[:8]).labels >= 0
    assert mass == pytest.approx(float(before.softmax(-1)[counted][:, size:].sum(1).mean()), rel=1e-5)
    assert teach.trimmed(module, data) is None


@pytest.mark.parametrize(("model", "kind", "said"), [
    ("{arch: causal, path: ENCODER}", RecipeError, "does not read from left to right"),
    ("{arch: pretrained, path: ENCODER}", RecipeError, "does not say what comes next"),
    ("{arch: causal, path: BODY}", DataError, "holds no whole language model"),
])
def test_folders_that_are_no_language_model_are_refused(small, pretrained, tmp_path, model, kind, said):
    for name in ("encoder", "body"):
        model = model.replace(name.upper(), str(pretrained / name))
    teacher = f"teacher={{kind: local, model: {model}, rights: {{terms: own}}, train: {{epochs: 1, {NUMERICS}}}}}"
    with pytest.raises(kind, match=said):
        pipeline.run(recipe.load("cross_tokenizer", small(teacher)), options=pipeline.Options(runs=tmp_path))
    assert not list(tmp_path.glob("_cache/teacher-*/model.safetensors"))


def test_a_vocabulary_that_no_id_of_the_store_names_is_refused():
    common = {"keep": "tokens", "k": 8, "temperatures": (1.0,), "tokenizer": "t", "teacher": "t", "data": "d", "transform": "x"}
    with pytest.raises(DataError, match="vocabulary is not usable: got 16,777,217 tokens"):
        Header(classes=2**24 + 1, dtype="uint8", **common)
