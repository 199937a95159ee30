"""Students of running text that are cut out of their teacher, end to end at toy size."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from understudy import pipeline, recipe
from understudy.errors import RecipeError
from understudy.stages import derive
from understudy.stages.prepare import Given, prepare
from understudy.students import artefact

NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
READS = "tokenizer: {kind: bpe, size: 300}"
DECODER = "{arch: decoder, width: 16, layers: 2, heads: 4, kv_heads: 2}"
WHOLE = f"student={{from_teacher: {{layers: 2}}, {READS}}}"
NARROW = f"student={{from_teacher: {{layers: [1], width: 8, inner: 20}}, {READS}}}"


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, folders):
    """Forty documents of a small language, some longer than a row."""
    return folders.documents(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def small(corpus):
    """A small recipe whose students all but stand still."""

    def call(student, *more):
        train = f"train: {{epochs: 25, batch_size: 8, lr: 1e-2, {NUMERICS}}}"
        return recipe.load("next_word", (
            f"data={{kind: corpus, path: '{corpus}', passage: 160, split: {{validation: 0.1, test: 0.3}}}}",
            f"teacher={{kind: local, model: {DECODER}, rights: {{terms: own}}, {train}}}", student,
            "objective=[{kind: sequence.ForwardKL}]", "store={keep: live}", "metric=bits_per_byte",
            f"training={{steps: 2, batch_size: 8, lr: 1e-9, seeds: 1, threads: 1, control: init_only, {NUMERICS}}}", *more,
        ))  # fmt: skip

    return call


@pytest.fixture(scope="session")
def go(small, tmp_path_factory):
    """A run among others that share a cache."""
    runs = tmp_path_factory.mktemp("runs")
    return lambda *wanted: pipeline.run(small(*wanted), options=pipeline.Options(runs=runs))


@pytest.fixture(scope="session")
def whole(go):
    """A run whose student has all that its teacher has."""
    return go(WHOLE, "name=whole")


@pytest.fixture(scope="session")
def folder(whole, tmp_path_factory):
    """A teacher: a copy of the student's folder, which a function may change."""

    def call(change):
        made = tmp_path_factory.mktemp("folder")
        shutil.copytree(whole.path / "student", made, dirs_exist_ok=True)
        change(made)
        model = f"model: {{arch: causal, path: '{made}'}}, weights: '{made}'"  # with weights it is not trained
        return f"teacher={{kind: local, {model}, rights: {{terms: own}}}}"

    return call


@pytest.mark.slow
def test_a_student_with_all_of_its_teacher_begins_where_the_teacher_ends(whole, go):
    for run in (whole, go(WHOLE, "name=stored", "store={keep: tokens}")):
        summary = run.summary
        assert summary["arms"]["control"]["mean"] == summary["teacher"]["value"] < 0.7 * summary["trivial"]
        assert summary["arms"]["distilled"]["mean"] == pytest.approx(summary["teacher"]["value"], abs=1e-6)
        assert summary["arms"]["control"]["parameters"] == summary["teacher"]["parameters"]


@pytest.mark.slow
def test_a_narrower_student_is_the_cut_and_both_arms_begin_there(go):
    run = go(NARROW, "name=narrow")
    arms, student = run.summary["arms"], artefact.load(run.path / "student")
    assert arms["distilled"]["mean"] == pytest.approx(arms["control"]["mean"], abs=1e-6)
    assert student.module.sizes.width == 8 and student.module.sizes.heads == 2 and student.module.sizes.groups == 1
    assert go(NARROW, "name=narrow").path == run.path, "the recipe that was written down is taken up again"
    assert isinstance(student.generate(["the cat"], most=4)[0], str)


@pytest.mark.slow
def test_it_learns_from_there(go):
    learns = f"training={{steps: 40, batch_size: 8, lr: 1e-2, seeds: 1, threads: 1, control: init_only, {NUMERICS}}}"
    arms = go(NARROW, "name=learns", learns).summary["arms"]
    assert arms["distilled"]["mean"] < 0.9 * arms["control"]["mean"]


@pytest.mark.slow
@pytest.mark.parametrize(("cut", "width"), [("{layers: 2}", 16), ("{layers: 1, width: 12, inner: 20}", 12), ("{layers: 2, heads: 2}", 16)])
def test_a_folder_of_the_library_is_cut_too(whole, folder, go, cut, width):
    """The teacher is a folder in Llama's layout with its tokenizer, and is not trained here."""
    pytest.importorskip("transformers")
    run = go(f"student={{from_teacher: {cut}}}", folder(lambda place: None), f"name=folder_{width}_{len(cut)}")
    arms, config = run.summary["arms"], json.loads((run.path / "student" / "config.json").read_text())
    assert config["hidden_size"] == width and config["head_dim"] == 4 and config["model_type"] == "llama"
    assert arms["distilled"]["mean"] == pytest.approx(arms["control"]["mean"], abs=1e-6)
    assert run.summary["teacher"]["value"] == pytest.approx(whole.summary["teacher"]["value"], rel=1e-5)
    if cut == "{layers: 2}":
        assert arms["control"]["mean"] == pytest.approx(run.summary["teacher"]["value"], rel=1e-6)
    assert isinstance(artefact.load(run.path / "student").generate(["the cat"], most=4)[0], str)


@pytest.mark.slow
def test_the_recipe_says_by_what_the_parts_that_stay_are_chosen(whole, folder, go):
    """By weight they are those of the largest norm; each way keeps other ones here."""
    pytest.importorskip("transformers")
    teacher, kept = folder(lambda place: None), {}
    rows = load_file(whole.path / "student" / "model.safetensors")
    gate, up, down = (rows[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    for kind in ("activation", "magnitude", "taylor"):
        run = go(f"student={{from_teacher: {{layers: 2, inner: 20, importance: {kind}}}}}", teacher, f"name={kind}")
        own = load_file(run.path / "student" / "model.safetensors")["model.layers.0.mlp.gate_proj.weight"]
        kept[kind] = torch.cdist(own, gate).argmin(1).tolist()
        torch.testing.assert_close(own, gate[kept[kind]], rtol=0, atol=1e-6)
    norms = gate.square().sum(1) + up.square().sum(1) + down.square().sum(0)
    assert kept["magnitude"] == norms.argsort(descending=True)[:20].sort().values.tolist()
    assert len({tuple(units) for units in kept.values()}) == 3


@pytest.mark.slow
def test_rows_behind_the_last_token_go_away(whole, folder, go):
    """Many folders round their vocabulary up: the student has the tokenizer's rows alone, and begins as what is left of the teacher."""
    transformers = pytest.importorskip("transformers")

    def rounded(place):
        model = transformers.AutoModelForCausalLM.from_pretrained(place, local_files_only=True)
        model.resize_token_embeddings(model.config.vocab_size + 23, mean_resizing=False)
        model.save_pretrained(place)

    run = go("student={from_teacher: {layers: 2}}", folder(rounded), "name=rounded")
    assert run.summary["arms"]["control"]["mean"] == pytest.approx(whole.summary["teacher"]["value"], rel=1e-5)
    assert run.summary["arms"]["control"]["parameters"] == whole.summary["teacher"]["parameters"]


@pytest.mark.slow
def test_a_folder_of_another_layout_is_refused_by_name(folder, go):
    pytest.importorskip("transformers")
    other = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 300}
    teacher = folder(lambda place: (place / "config.json").write_text(json.dumps(other)))
    with pytest.raises(RecipeError, match="can't cut this architecture: got gpt2, expected llama, mistral, qwen2, qwen3"):
        go("student={from_teacher: {layers: 1}}", teacher, "name=gpt2")


@pytest.mark.slow
def test_adapters_of_a_teacher_are_folded_in_before_it_is_cut(whole, go):
    pytest.importorskip("peft")
    model = f"{{arch: causal, path: '{whole.path / 'student'}', lora: 2}}"
    train = f"train: {{steps: 9, batch_size: 8, lr: 1e-2, {NUMERICS}}}"
    teacher = f"teacher={{kind: local, model: {model}, rights: {{terms: own}}, {train}}}"
    run = go("student={from_teacher: {layers: 2}}", teacher, "name=lora")
    assert run.summary["arms"]["control"]["mean"] == pytest.approx(run.summary["teacher"]["value"], rel=1e-4)
    assert run.summary["teacher"]["value"] != whole.summary["teacher"]["value"]


def test_a_check_without_a_run_knows_the_student(small, tmp_path):
    """Prevents: `understudy check` builds a student of which nobody has said what it is."""
    checks, plan = pipeline.check_only(small(NARROW), options=pipeline.Options(runs=tmp_path))
    assert checks and plan


@pytest.mark.parametrize(("overrides", "said"), [
    ((f"student={{from_teacher: {{layers: 3}}, {READS}}}",), "more layers than there are"),
    ((f"student={{from_teacher: {{layers: [0, 2]}}, {READS}}}",), "layers are not the teacher's"),
    ((f"student={{from_teacher: {{layers: 1, width: 10}}, {READS}}}",), "a multiple of 4, which a head has: 8, 16"),
    ((f"student={{from_teacher: {{layers: 1, width: 4}}, {READS}}}",), "do not fill the width"),
    ((f"student={{from_teacher: {{layers: 1, heads: 2}}, {READS}}}",), "do not fill the width"),
    ((f"student={{from_teacher: {{layers: 1, inner: 1000}}, {READS}}}",), "inner is larger"),
    ((f"student={{from_teacher: {{static: 8}}, {READS}}}",), "static takes its tokens"),
    ((f"student={{from_teacher: {{layers: 1, importance: taylor}}, {READS}}}",), "importance chooses nothing"),
    ((f"student={{from_teacher: {{layers: 1, width: 8, importance: loud}}, {READS}}}",), "importance"),
    ((WHOLE, "teacher={kind: local, model: {arch: bag}, rights: {terms: own}, train: {epochs: 1}}"), "one pretrained teacher"),
])
def test_what_can_t_be_cut_is_refused_before_anything_is_trained(small, tmp_path, overrides, said):
    with pytest.raises(RecipeError, match=said):
        pipeline.run(small(*overrides), options=pipeline.Options(runs=tmp_path))
    assert not list(tmp_path.glob("_cache/teacher/*"))


def test_other_tokens_than_the_teacher_s_are_refused(small, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("entirely other words, and other pieces of them: quick brown foxes jump over lazy dogs. " * 9)
    other = f"teacher.tokenizer={{kind: bpe, size: 300, corpus: {{path: '{texts}'}}}}"
    with pytest.raises(RecipeError, match="the student reads other tokens.*Leave student.tokenizer out"):
        pipeline.run(small(WHOLE, other), options=pipeline.Options(runs=tmp_path / "runs"))


def test_the_mapping_that_is_written_down_builds_the_cut(small):
    """A run that is taken up again reads its student from there."""
    wanted = small(NARROW)
    data, tree = prepare(wanted, Given()), recipe.resolved(wanted)
    derive.settle_student(tree, data)
    again = recipe.load(tree)
    assert recipe.resolved(again)["student"] == tree["student"] and tree["student"]["model"]["vocabulary"] == data.outputs
