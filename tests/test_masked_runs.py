"""Masked language models, end to end at toy size: DistilBERT's triple loss, and token by token on texts that are classified."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from understudy import kinds, pipeline, recipe
from understudy.errors import DataError, RecipeError, SelfTestError
from understudy.evaluation.language import COLUMNS
from understudy.selftest import language as checks
from understudy.selftest.examine import MASKED
from understudy.stages.prepare import Given, prepare
from understudy.students import artefact

transformers = pytest.importorskip("transformers")

NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
SENTENCES = ("turn the light on", "turn the light off", "play music", "send money bank", "stop the music", "the weather rain")


def letters(number):
    """A word of its own for every number, so that no text is in the test rows that is in training."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


@pytest.fixture(scope="session")
def places(tmp_path_factory, folders):
    """A text of 160 lines, each a sentence two or three times over, and a tiny encoder without the layers that fill in."""
    folder, dice = tmp_path_factory.mktemp("masked"), random.Random(0)
    lines = [" ".join([dice.choice(SENTENCES)] * dice.randint(2, 3)) + f" {letters(at)}" for at in range(160)]
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder / "text.txt", folders.encoder(folder / "encoder")


@pytest.fixture(scope="session")
def small(places):
    """The recipe's overrides for a small run."""
    text, encoder = places

    def call(*more):
        return (
            f"data.path={text}", "data.passage=96", "data.split={validation: 0.1, test: 0.3}", f"teacher.model.path={encoder}",
            f"teacher.train={{epochs: 40, batch_size: 8, lr: 1e-2, {NUMERICS}}}", "student.from_teacher={layers: 1}",
            f"training={{steps: 8, batch_size: 8, lr: 1e-3, seeds: 2, threads: 1, {NUMERICS}}}", *more,
        )  # fmt: skip

    return call


@pytest.fixture(scope="session")
def run(small, tmp_path_factory):
    """One run that several tests look at."""
    return pipeline.run(recipe.load("distil_bert", small()), options=pipeline.Options(runs=tmp_path_factory.mktemp("runs")))


def test_the_report_says_what_a_run_found(run):
    summary, details = run.summary, run.details
    assert summary["task"] == "masked" and summary["metric"] == "masked_token" and summary["higher_is_better"]
    assert summary["teacher"]["value"] > summary["trivial"]
    assert [one["name"] for one in details["measures"]] == ["masked_bits"]
    assert summary["examples"] == details["examples"]["test"] >= 5
    found = {row["check"]: row["result"] for row in details["selftest"]}
    assert found["sees-what-is-hidden"] == found["sensitivity"] == found["tap-captured-nothing"] == "ok" and "looks-ahead" not in found
    assert any("start at random" in note for note in details["notes"]) and any("one tokenizer" in note for note in details["notes"])
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    terms = {key.removesuffix("/mean") for row in rows if row["arm"] == "distilled" for key in row if key.endswith("/mean")}
    assert {"SoftTargets", "CrossEntropy", "HiddenCosine"} <= terms
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Masked token right" in page and "test documents" in page
    assert "which tokens of a text are hidden" in (run.path / "student" / "README.md").read_text(encoding="utf-8")


def test_its_figures_are_those_of_the_student_itself(run):
    """The share and the bits of the shipped student, once more from its folder, row by row."""
    student = artefact.load(run.path / "student").module
    data = prepare(recipe.load(run.path / "recipe.yaml"), Given())
    right = bits = count = 0.0
    for row in data.test:
        batch = data.rows.batch(row[None])
        with torch.inference_mode():
            log_probs = torch.log_softmax(student(batch.inputs).double(), -1)[0]
        for at, label in enumerate(batch.labels[0].tolist()):
            if label >= 0:
                right += int(log_probs[at].argmax()) == label
                bits -= float(log_probs[at, label]) / math.log(2)
                count += 1
    shipped = run.summary["arms"]["distilled"]
    assert right / count == pytest.approx(shipped["shipped"])
    seed = recipe.load(run.path / "recipe.yaml").training.seeds
    assert seed == 2 and count == run.details["examples"]["positions"] and bits / count < 6


def test_plain_transformers_loads_the_student(run):
    """The weights by their names, the tokenizer with its mask, and the same answers."""
    folder = run.path / "student"
    model, report = transformers.AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and model.config.num_hidden_layers == 1
    reader = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert (reader.mask_token, reader.cls_token, reader.sep_token, reader.pad_token) == ("[MASK]", "[CLS]", "[SEP]", "[PAD]")
    given = reader("turn the [MASK] on", return_tensors="pt")
    assert given["input_ids"][0].tolist().count(reader.mask_token_id) == 1
    student = artefact.load(folder)
    with torch.inference_mode():
        torch.testing.assert_close(model(**given).logits, student.module(given["input_ids"]), rtol=1e-5, atol=1e-5)
    assert not (folder / "generation_config.json").exists()
    for ask, said in ((lambda: student.generate(["turn"]), "does not write"), (lambda: student.predict(["turn"]), "fills in tokens")):
        with pytest.raises(RecipeError, match=said):
            ask()


@pytest.mark.slow
def test_both_arms_start_from_the_teacher_s_layers(small, tmp_path, monkeypatch):
    """Prevents: a control that starts at random and is beaten by the copied layers, not by what distilling adds."""
    from understudy.stages import arms

    seen = []
    fit = arms.fit
    monkeypatch.setattr(arms, "fit", lambda module, *rest, **more: (seen.append(
        {name: value.clone() for name, value in module.state_dict().items()}), fit(module, *rest, **more))[1], raising=False)
    run = pipeline.run(recipe.load("distil_bert", small("training.steps=1", "training.seeds=1")), options=pipeline.Options(runs=tmp_path))
    settled = recipe.resolved(recipe.load(run.path / "recipe.yaml"))
    assert settled["student"]["model"]["arch"] == "masked" and settled["student"]["model"]["config"]["num_hidden_layers"] == 1
    assert settled["objective"][2]["layers"] == {"model.bert.encoder.layer.0": "model.bert.encoder.layer.1"}
    assert settled["store"]["keep"] == "live"
    control, distilled = seen
    assert all(torch.equal(control[name], distilled[name]) for name in control) and "bert.encoder.layer.0.output.dense.weight" in control


OTHER_TOKENS = ("student={model: {arch: masked, config: {model_type: bert, vocab_size: 300, hidden_size: 16, num_hidden_layers: 1, "
                "num_attention_heads: 2, intermediate_size: 16, pad_token_id: 0}}, tokenizer: {kind: bpe, size: 300}}")  # fmt: skip


@pytest.mark.parametrize(("change", "error", "said"), [
    (["store.keep=tokens"], RecipeError, "hidden anew in every epoch"),
    (["store.keep=dense"], RecipeError, "hidden anew in every epoch"),
    (["metric=bits_per_byte"], RecipeError, "another task"),
    (["data.mask=1.0"], RecipeError, "share of tokens that are hidden"),
    (["data.task=next", "metric=auto"], RecipeError, "does not say what comes next"),
    (["data.task=next", "data.mask=0.2"], RecipeError, "share of tokens that are hidden"),
    ([OTHER_TOKENS], RecipeError, "reads other tokens than the student"),
    ([OTHER_TOKENS, "objective=[{kind: logits.SoftTargets}]"], RecipeError, "one with another tokenizer"),
    (["objective=[{kind: features.Hint, layers: {model.bert.encoder.layer.0: model.bert.encoder.layer.1}}, {kind: labels.CrossEntropy}]"],
     RecipeError, "running text can't be distilled with this objective"),
    (["export=[onnx]"], RecipeError, "the export onnx can.t hold such a student"),
])  # fmt: skip
def test_what_can_t_be_is_refused_before_anything_is_computed(small, tmp_path, change, error, said):
    with pytest.raises(error, match=said):
        pipeline.run(recipe.load("distil_bert", small(*change)), options=pipeline.Options(runs=tmp_path))


def test_a_tokenizer_without_a_mask_is_refused(places, small, tmp_path):
    from understudy import tokens

    content = json.loads((places[1] / "tokenizer.json").read_text().replace("[MASK]", "[HOLE]"))
    with pytest.raises(DataError, match="no token for what is hidden"):
        _ = tokens.Tokenizer(json.dumps(content), 0).mask


def test_models_that_read_what_they_have_to_tell_are_caught(small):
    """Prevents: labels that were set and a mask that was not: a loss of almost nothing, and a model that knows nothing."""
    from dataclasses import replace

    from understudy.stages import check

    wanted = recipe.load("distil_bert", small())
    data = prepare(wanted, Given())
    look = dict(MASKED)["sees-what-is-hidden"]
    assert look is checks.holes
    tree = recipe.resolved(wanted) | {"metric": "masked_token"}
    tree["student"]["model"] = {"arch": "masked", "config": {}}

    class Nobody:
        provides = frozenset({"logits"})
        fingerprint = ""

    subject = check._subject(tree, data, Nobody(), Given(), (), None)
    assert look(subject).result == "ok"
    open_rows = data.rows

    class Forgetful:
        stored, labels = open_rows.stored, open_rows.labels

        def batch(self, rows, views=None, view=0):
            batch = open_rows.batch(rows, views, view)
            return replace(batch, inputs=torch.where(batch.labels >= 0, batch.labels, batch.inputs))

    fault = look(replace(subject, rows=Forgetful()))
    assert fault.result == "fault" and "read the tokens that they have to tell" in fault.message


def test_tallies_hold_no_words(run, small):
    from understudy.stages.tasks import of
    from understudy.training.numerics import Numerics

    data = prepare(recipe.load("distil_bert", small()), Given())
    student = artefact.load(run.path / "student").module
    told = of(data).answers(student, data, data.test, Numerics())
    assert told[:, COLUMNS.index("words")].sum() == 0 and told[:, COLUMNS.index("positions")].sum() > 0
    found = of(data).validator({"metric": "masked_token"}, data, Numerics(), data.test)(student)
    assert set(found) == {"masked_token", "masked_bits"}


# --- token by token on texts that are classified

TOKENS = [name for name in kinds.objective_names() if name.startswith("tokens.")]
INTENTS = {"music": ("play music", "stop playing music", "music on"), "light": ("turn the light on", "light off", "turn off the light"),
           "bank": ("send money", "send money to the bank", "the bank")}  # fmt: skip


@pytest.fixture(scope="session")
def intents(tmp_path_factory):
    """A file of 90 labelled sentences."""
    folder = tmp_path_factory.mktemp("intents")
    rows = [{"text": f"{said[at % len(said)]} {letters(at)}", "label": name} for name, said in INTENTS.items()
            for at in range(30)]  # fmt: skip
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder / "rows.jsonl"


def classified(intents, encoder, *more):
    teacher = f"{{kind: local, model: {{arch: pretrained, path: '{encoder}'}}, rights: {{terms: own}}, "
    return (
        f"data={{kind: text, path: '{intents}', split: {{validation: 0.1, test: 0.3}}}}",
        f"teacher={teacher}train: {{epochs: 15, lr: 1e-2, batch_size: 16, {NUMERICS}}}}}",
        "student={from_teacher: {layers: 2, width: 8}, tokenizer: {kind: folder}}", "store={features: live}",
        f"training={{steps: 3, batch_size: 16, seeds: 1, threads: 1, control: none, control_reason: toy, {NUMERICS}}}",
        "export=[safetensors]", *more,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TOKENS)
def test_it_trains_by_its_defaults_on_texts(name, intents, places, tmp_path):
    """Prevents: an objective that no run would come past. A narrower student where the formula allows one."""
    same = name in ("tokens.HiddenCosine", "tokens.PatientKD", "tokens.AttentionMSE")
    more = ["student.from_teacher={layers: 2}"] if same else ["student.from_teacher={layers: 2, width: 8}"]
    settings = {"tokens.SelfAttentionRelation": ", heads: 2",  # half of the teacher's width has one of its two heads
                "tokens.PatientKD": ", layers: {model.bert.encoder.layer.1: model.bert.encoder.layer.1}"}  # a first block says little here
    terms = f"objective=[{{kind: {name}{settings.get(name, '')}}}, {{kind: labels.CrossEntropy}}]"
    wanted = recipe.load("intent_classifier", classified(intents, places[1], *more, terms))
    run = pipeline.run(wanted, options=pipeline.Options(runs=tmp_path))
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    [last] = [row for row in rows if row["arm"] == "distilled"]
    assert f"{name.partition('.')[2]}/mean" in last
    assert "fault" not in {row["result"] for row in run.details["selftest"]}


@pytest.mark.parametrize(("change", "said"), [
    (["store={features: float16}"], "asked in every step|in every step"),
    (["student.tokenizer={kind: pruned}"], "reads other tokens"),
    (["student.tokenizer={kind: folder, length: 5}"], "reads other tokens"),
    (["objective=[{kind: tokens.AttentionMSE}, {kind: labels.CrossEntropy}]"], "number of heads is not known"),
])
def test_tokens_are_matched_only_with_the_same_ones(change, said, intents, places, tmp_path):
    terms = "objective=[{kind: tokens.HiddenMSE}, {kind: labels.CrossEntropy}]"
    with pytest.raises(RecipeError, match=said):
        wanted = recipe.load("intent_classifier", classified(intents, places[1], terms, *change))
        pipeline.run(wanted, options=pipeline.Options(runs=tmp_path))


def test_pictures_have_no_tokens(toy, tmp_path):
    terms = "objective=[{kind: tokens.HiddenMSE}, {kind: labels.CrossEntropy}]"
    with pytest.raises((RecipeError, SelfTestError), match="without tokens"):
        pipeline.run(toy.recipe(terms, "store={features: live}"), options=pipeline.Options(runs=tmp_path))
