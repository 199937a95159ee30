"""Bad input through the command line: refused with exit 2 or 3 before compute, with the four-part message, leaving nothing half-written."""

from __future__ import annotations

import builtins
import errno
import gzip
import html
import io
import json
import logging
import os
import re
import sqlite3
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from understudy import atomic, pipeline, recipe
from understudy.cli import explain, main
from understudy.store import manifest
from understudy.store.schema import read_header
from understudy.store.writer import Writer

TABLE = "data={kind: table, path: %s, label: y, split: {validation: 0.2, test: 0.3}}"
HOSTILE = "<img src=x onerror=alert(1)>\x1b]0;owned\x07\u202e|`[a](javascript:x)"
PLAIN = "plain"
CONTROL = "[\x00-\x09\x0b-\x1f\x7f-\x9f]"


@pytest.fixture
def understudy(capsys, tmp_path, monkeypatch):
    """A command in tmp_path: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), logging.getLogger("understudy").level

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    yield call
    root.handlers[:] = handlers
    logging.getLogger("understudy").setLevel(level)


@pytest.fixture
def refused(understudy, toy, tmp_path):
    """Run the toy recipe with overrides; the message of its refusal, after everything that must hold for it was checked."""
    (tmp_path / "toy.yaml").write_text(recipe.to_yaml(recipe.resolved(toy.recipe())))

    def call(*overrides, code=3, words=("run", "toy.yaml")):
        before = everything(tmp_path)
        got, out, err = understudy(*words, *overrides)
        message = err.splitlines()[-1] if err else ""
        assert got == code, (got, err)
        assert out == "" and re.fullmatch(r"(?s)understudy: .+: got .+, expected .+\. .+[.?]", "\n".join(after_stages(err))), err
        assert "Traceback" not in err and not re.search(r"^  (settle|teacher|train|record) ", err, re.M), "before compute"
        assert everything(tmp_path) == before, "nothing is left"
        return "\n".join(after_stages(err)) or message

    return call


def after_stages(err: str) -> list[str]:
    """The lines of stderr that are no progress."""
    lines = err.splitlines()
    start = next((index for index, line in enumerate(lines) if line.startswith("understudy: ")), len(lines))
    return lines[start:]


def everything(folder: Path) -> dict[str, bytes]:
    """All files below the folder, but empty locks."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "_locks" not in path.parts}


def csv(folder: Path, name="a.csv", header="x,z,y", rows=60, line=lambda i: f"{i % 7},{i * 0.37:.2f},{'no' if i % 3 else 'yes'}") -> Path:
    path = folder / name
    path.write_text("".join(f"{text}\n" for text in [header, *(line(i) for i in range(rows))] if text))
    return path


def idx(folder: Path, classes=2, count=40, suffix="") -> Path:
    """An idx folder with train and test parts."""
    folder.mkdir(exist_ok=True)
    for part in ("train", "t10k"):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
        labels = np.arange(count, dtype=np.uint8) % classes
        for name, magic, array in (("images-idx3", 0x0803, pixels), ("labels-idx1", 0x0801, labels)):
            data = struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()
            (folder / f"{part}-{name}-ubyte{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return folder


def pictures(folder: Path, names=("cat", "dog"), count=12) -> Path:
    """A folder of class folders; a class's pictures have its brightness, so that it can be learnt."""
    for number, name in enumerate(names):
        place = Path(os.fsdecode(os.path.join(os.fsencode(folder), name if isinstance(name, bytes) else os.fsencode(name))))
        place.mkdir(parents=True)
        for index in range(count):
            noise = np.random.default_rng(100 * number + index).integers(0, 60, (8, 8))
            Image.fromarray((noise + 190 * number // max(1, len(names) - 1)).astype(np.uint8)).save(place / f"{index}.png")
    return folder


def of_images(folder: Path) -> list[str]:
    teacher = "{kind: local, model: {arch: mlp, hidden: [8]}, train: {epochs: 6, lr: 2e-2, batch_size: 8}, rights: {terms: own}}"
    return [f"data={{kind: images, path: {folder}, split: {{validation: 0.2, test: 0.3}}}}", f"teacher={teacher}", "training.batch_size=8"]


# --- data


@pytest.mark.parametrize("data", [
    TABLE % "nowhere.csv", "data={kind: idx, path: nowhere, split: {validation: 0.1}}",
    "data={kind: images, path: nowhere, split: {test: 0.3}}"])  # fmt: skip
def test_a_missing_file(refused, data):
    assert "nowhere" in refused(data)


@pytest.mark.parametrize("text", ["", "x,z,y\n", "\n\n"])
def test_an_empty_table(refused, tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    assert "a.csv" in refused(TABLE % "a.csv")


def test_an_empty_folder_of_images(refused, tmp_path):
    (tmp_path / "pics").mkdir()
    refused(*of_images(tmp_path / "pics"))
    (tmp_path / "pics/cat").mkdir()
    assert "cat" in refused(*of_images(tmp_path / "pics"))


def test_empty_idx_files(refused, tmp_path):
    folder = idx(tmp_path / "idx", count=0)
    assert "idx" in refused(f"data={{kind: idx, path: {folder}, split: {{validation: 0.1}}}}")


def test_one_class_only(refused, tmp_path):
    csv(tmp_path, line=lambda i: f"{i},{i * 0.1},yes")
    assert "class" in refused(TABLE % "a.csv")
    assert "class" in refused(*of_images(pictures(tmp_path / "pics", ["cat"])))


def test_a_label_out_of_range(refused, tmp_path):
    folder = idx(tmp_path / "idx", classes=4)
    message = refused(f"data={{kind: idx, path: {folder}, classes: [a, b], split: {{validation: 0.1}}}}")
    assert "out of range" in message and "train/000002" in message
    csv(tmp_path)
    assert "yes" in refused(TABLE.replace("label: y", "label: y, classes: [no, maybe]") % "a.csv")


@pytest.mark.parametrize("cut", [10, 60, 200])
def test_a_truncated_gz(refused, tmp_path, cut):
    folder = idx(tmp_path / "idx", suffix=".gz")
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-cut])
    assert "train-images" in refused(f"data={{kind: idx, path: {folder}, split: {{validation: 0.1}}}}")
    whole = gzip.compress(csv(tmp_path).read_bytes())
    (tmp_path / "a.csv.gz").write_bytes(whole[: max(5, len(whole) - cut)])
    assert "a.csv.gz" in refused(TABLE % "a.csv.gz")


def test_a_truncated_idx_file(refused, tmp_path):
    folder = idx(tmp_path / "idx")
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert "t10k-labels" in refused(f"data={{kind: idx, path: {folder}, split: {{validation: 0.1}}}}")


def test_a_corrupted_image_is_named(refused, tmp_path):
    """Prevents: one broken file among a hundred thousand stops a run, and nobody knows which."""
    folder = pictures(tmp_path / "pics")
    bad = folder / "dog" / "7.png"
    for content in (b"no image", b"", bad.read_bytes()[:-30]):
        bad.write_bytes(content)
        assert "dog/7.png" in refused(*of_images(folder))


def test_a_ragged_row_is_named_by_its_line(refused, tmp_path):
    csv(tmp_path, line=lambda i: f"{i},{i * 0.1},{'no' if i % 3 else 'yes'}" + (",more" if i == 41 else ""))
    assert re.search(r"line 43|:43", refused(TABLE % "a.csv"))


def test_a_class_that_only_the_test_part_has(refused, tmp_path):
    csv(tmp_path)
    csv(tmp_path, "t.csv", line=lambda i: f"{i % 7},{i * 0.37:.2f},{'no' if i % 3 else 'dunno'}")
    message = refused("data={kind: table, path: a.csv, test_path: t.csv, label: y, split: {validation: 0.2}}")
    assert "dunno" in message and "test" in message


def test_a_column_that_is_not_there(refused, tmp_path):
    csv(tmp_path)
    assert "Did you mean 'y'" in refused((TABLE % "a.csv").replace("label: y", "label: yy"))


@pytest.mark.parametrize(("overrides", "code", "word"), [
    (("robustness={shifts: [typos]}",), 2, "unknown shift of inputs of kind table"),
    (("robustness={severities: [6]}",), 2, "robustness.severities"),
    (("robustness={rows: 1}",), 2, "robustness.rows"),
    (("robustness={shifst: auto}",), 2, 'Did you mean "shifts"'),
    (("data.sensitive=[town]",), 3, "has no column 'town'"),
    (("data.sensitive=[z]",), 3, "'z' makes no groups"),
    (("gates={max_group_gap_increase: 0.1}",), 2, "no data.sensitive")])  # fmt: skip
def test_robustness_that_can_not_be_measured(refused, tmp_path, overrides, code, word):
    assert word in refused(TABLE % csv(tmp_path), *overrides, code=code)


def test_a_measured_value_is_no_class(refused, tmp_path):
    csv(tmp_path, line=lambda i: f"{i},{i * 0.1},{i * 0.731}")
    assert "egression" in refused(TABLE % "a.csv")


def test_no_test_rows(refused):
    assert "split.test" in refused("data={kind: builtin, name: iris}", code=2)


# --- recipe


@pytest.mark.parametrize(("override", "near"), [
    ("trainig.epochs=2", "training"), ("training.epohcs=2", "epochs"), ("data.slpit.test=0.3", "split"), ("data.split.tst=0.3", "test"),
    ("teacher.0.modle={arch: mlp}", "model"), ("teacher.0.train.epochz=1", "epochs"), ("teacher.0.rights.term=own", "terms"),
    ("student.modell={arch: mlp}", "model"), ("student.model.archh=mlp", "arch"), ("student.model.arch=liner", "linear"),
    ("objective.0.temprature=2", "temperature"), ("objective.0.kind=logits.SoftTarget", "logits.SoftTargets"), ("store.kepe=dense", "keep"),
    ("gates.min_keep=0.5", "min_kept"), ("export=[onxx]", "onnx"), ("metric=acuracy", "accuracy"), ("data.kind=bultin", "builtin"),
    ("data.name=irs", "iris")])  # fmt: skip
def test_a_typo_at_any_level(refused, override, near):
    assert near in refused(override, code=2)


@pytest.mark.parametrize("text", ["a: [", "- x", "", "\x00", "name: a\nname: b", "x: !!python/name:os.system"])
def test_unreadable_yaml(refused, tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    assert "bad.yaml" in refused(words=("run", "bad.yaml"), code=2)


def test_no_recipe_of_that_name(refused):
    assert "digits" in refused(words=("run", "digit"), code=2)


def test_a_run_folder_of_another_recipe(understudy, refused, tmp_path):
    assert understudy("run", "toy.yaml")[0] == 0
    assert "training.epochs" in refused("training.epochs=9", code=2)


def test_a_batch_of_one_under_batch_norm(refused, tmp_path):
    """Prevents: a student whose every feature is its bias."""
    wide = [*of_images(pictures(tmp_path / "pics")), "student.model={arch: resnet, depth: 8, width: 1}"]
    assert "batch" in refused(*wide, "training.batch_size=1", code=2)


@pytest.mark.parametrize("model", ["teacher.0.weights=folder", "student.weights=folder"])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pkl"])
def test_a_model_folder_with_a_pickle(refused, tmp_path, name, model):
    """Prevents: opening a model from somewhere else runs what lies in it."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    message = refused(model, *(["teacher.0.train=null"] if model.startswith("teacher") else []))
    assert "pickle" in message and not (tmp_path / "owned").exists()


def test_weights_that_are_not_there_or_do_not_fit(refused, understudy, tmp_path):
    assert "nowhere" in refused("student.weights=nowhere")
    assert understudy("run", "toy.yaml", "name=first")[0] == 0
    assert "fit" in refused("student.weights=runs/first/student", "data={kind: builtin, name: wine, split: {test: 0.3}}")


def test_a_store_that_is_not_there_or_for_other_data(refused, understudy, tmp_path):
    assert "nowhere" in refused("teacher={kind: stored, path: nowhere}")
    assert understudy("run", "toy.yaml", "name=first")[0] == 0
    [store] = (tmp_path / "runs/_cache").glob("store-*")
    message = refused(f"teacher={{kind: stored, path: {store}}}", "data={kind: builtin, name: wine, split: {test: 0.3}}")
    assert "data" in message


def test_an_export_that_is_not_installed_is_refused_before_compute(refused, monkeypatch):
    """Prevents: the run ends with an error after an hour, because onnx is missing."""
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "onnxscript" else find(name, *more))
    assert "onnxscript" in refused("export=[onnx]", code=2)


# --- modes


DIGITS = "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}}"
CNN = "{kind: local, model: {arch: cnn, width: 4}, train: {epochs: 1}, rights: {terms: own}}"
SMALL_CNN = "student={model: {arch: cnn, width: 2}}"
HINT = "objective=[{kind: features.Hint%s}]"
PREDICTOR = "{kind: predictor, estimator: LogisticRegression, rights: {terms: own}}"


def test_a_wrong_path_of_a_layer_names_the_nearest(refused):
    """Prevents: a term that captures nothing and trains on nothing at a plausible loss."""
    hint = HINT % ", layers: {%s: %s}"
    resnet = "student={model: {arch: resnet, depth: 8, width: 2}}"
    message = refused(DIGITS, f"teacher={CNN}", resnet, hint % ("layr2", "head"), code=2)
    assert "the student has no layer layr2" in message and "layer2" in message
    assert "the teacher has no layer haed" in refused(DIGITS, f"teacher={CNN}", resnet, hint % ("layer2", "haed"), code=2)
    assert "no side" in refused(DIGITS, f"teacher={CNN}", resnet, hint % ("'layer2:out'", "head"), code=2)


def test_shapes_that_no_projection_can_reconcile(refused):
    message = refused(DIGITS, f"teacher={CNN}", "student={model: {arch: resnet, depth: 8, width: 2}}",
                      HINT % ", layers: {layer2: 'head:input'}", code=2)  # fmt: skip
    assert "features.Hint" in message and "no projection" in message and "student (64, 4, 4)" in message
    vectors = "objective=[{kind: features.AttentionTransfer, layers: {'linear:input': 'head:input'}}]"
    assert "features.AttentionTransfer" in refused(
        DIGITS, f"teacher={CNN}", "student={model: {arch: resnet, depth: 8, width: 2}}", vectors, code=2)  # fmt: skip


def test_layers_of_a_teacher_whose_inside_nobody_sees(refused, understudy, tmp_path):
    assert "predictor" in refused(f"teacher={PREDICTOR}", HINT % "", code=2)
    assert "several teachers" in refused(DIGITS, f"teacher=[{CNN}, {CNN}]", SMALL_CNN, HINT % "", code=2)
    assert "several peers" in refused(DIGITS, "teacher={kind: peers, count: 3}", SMALL_CNN, HINT % "", code=2)
    assert understudy("run", "toy.yaml", "name=first")[0] == 0
    [store] = (tmp_path / "runs/_cache").glob("store-*")
    assert "stored" in refused(f"teacher={{kind: stored, path: {store}}}", HINT % "", code=2)


def test_a_store_without_the_view_that_is_needed(refused, understudy, tmp_path):
    """Prevents: the run stops in its second epoch, at the first batch of a view that nobody recorded."""
    two = "data.augment={jitter: 1, views: 2}"
    (tmp_path / "pics").mkdir()
    pictures(tmp_path / "pics/all")
    data = of_images(tmp_path / "pics/all")
    assert understudy("run", "toy.yaml", "name=first", *data, two)[0] == 0
    [store] = (tmp_path / "runs/_cache").glob("store-*")
    copied = tmp_path / "store"
    recorder = Writer(copied, read_header(store)[0])
    recorder.close()
    message = refused(*data, f"teacher={{kind: stored, path: {copied}}}", two)
    assert "views" in message and "1, 2" in message


def test_peers_and_assistants_of_another_number_of_classes(refused, tmp_path, monkeypatch):
    (tmp_path / "mine_modes.py").write_text("from torch import nn\ndef net(shape, classes):\n    return nn.Linear(shape[0], classes + 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    import mine_modes  # noqa: F401 - so that its compiled file is there before

    factory = "{factory: 'mine_modes:net'}"
    allowed = ("run", "toy.yaml", "--allow-code")
    assert "peer 1" in refused(f"teacher={{kind: peers, models: [{factory}]}}", words=allowed, code=2)
    assert "online teacher" in refused(f"teacher={{kind: online, model: {factory}}}", words=allowed, code=2)
    chained = f"teacher={{kind: assistants, of: {PREDICTOR}, through: [{{model: {factory}}}]}}"
    message = refused(chained, words=allowed, code=2)
    assert "assistant 1" in message and "(2, 4)" in message and "(2, 3)" in message


@pytest.mark.parametrize(("teacher", "word"), [
    ("{kind: assistants, through: [{model: {arch: mlp}}]}", "no first teacher"),
    (f"{{kind: assistants, of: {PREDICTOR}, through: []}}", "no assistant"),
    (f"{{kind: assistants, of: {PREDICTOR}, through: [{{model: {{arch: mlp}}}}, {{train: {{epochs: 1}}}}]}}", "through.1"),
    (f"{{kind: assistants, of: {PREDICTOR}, through: [{{modle: {{arch: mlp}}, model: {{arch: mlp}}}}]}}", "model"),
    ("{kind: assistants, of: {kind: peers}, through: [{model: {arch: mlp}}]}", "can't begin"),
    ("{kind: assistants, of: {kind: weighted, rights: {terms: own}}, through: [{model: {arch: mlp}}]}", "no teacher"),
    ("{kind: weighted, rights: {terms: own}}", "teacher_weights"), ("{kind: peers, count: 1}", "at least one"),
    ("{kind: averaged, decay: 1.0}", "decay"),
    ("{kind: online}", "model"), ("{kind: generations, count: 0}", "at least one"), ("{kind: itself}", "needs a teacher"),
    ("[{kind: peers}, {kind: averaged}]", "stands alone")])  # fmt: skip
def test_a_mode_that_lacks_a_part(refused, teacher, word):
    assert word in refused(f"teacher={teacher}", code=2)


def test_a_chain_without_an_objective_that_teaches(refused):
    chained = f"teacher={{kind: assistants, of: {CNN}, through: [{{model: {{arch: cnn, width: 3}}}}]}}"
    assert "chain" in refused(DIGITS, chained, SMALL_CNN, HINT % "", code=2)


@pytest.mark.parametrize("source", ["noise", "generated"])
def test_inputs_that_are_no_examples_need_a_model_that_answers(refused, understudy, tmp_path, source):
    wanted = f"data.transfer.source={source}"
    soft = "objective=[{kind: logits.SoftTargets}]"
    for teacher in (PREDICTOR, "{kind: peers}", "{kind: averaged}", f"[{PREDICTOR}, {PREDICTOR}]"):
        assert source in refused(f"teacher={teacher}", wanted, soft, code=2)
    assert understudy("run", "toy.yaml", "name=first")[0] == 0
    [store] = (tmp_path / "runs/_cache").glob("store-*")
    assert "stored" in refused(f"teacher={{kind: stored, path: {store}}}", wanted, soft, code=2)


@pytest.mark.parametrize("source", ["noise", "generated"])
@pytest.mark.parametrize(
    "kind", ["relations.CRD", "logits.Progressive", "labels.CrossEntropy", "logits.VirtualTeacher", "logits.Decoupled"])  # fmt: skip
def test_ids_and_labels_of_inputs_that_are_no_examples_mean_nothing(refused, kind, source):
    """Prevents: a bank that takes the tenth generated picture for the tenth example; a label term that is zero all along."""
    message = refused(f"data.transfer.source={source}", f"objective=[{{kind: logits.SoftTargets}}, {{kind: {kind}}}]", code=2)
    assert kind in message and source in message


def test_exits_of_a_student_without_stages(refused):
    exits = "objective=[{kind: exits.DeepExits}, {kind: labels.CrossEntropy}]"
    assert "no stage" in refused("teacher={kind: itself}", exits, code=2)
    assert "no layer" in refused("teacher={kind: itself}", exits.replace("DeepExits", "DeepExits, layers: [nowhere]"), code=2)


@pytest.mark.parametrize(("overrides", "word"), [
    (("training.balance=gradnrm",), "gradnorm"), (("training.balance=gradnorm", "teacher={kind: peers}"), "there before the student"),
    (("training.balance=gradnorm", "teacher={kind: averaged}"), "averaged"), (("teacher_weights=learnt",), "two teachers"),
    (("teacher_weights=per_exmple",), "per_example"), (("teacher_weights=per_example", f"teacher=[{PREDICTOR}, {PREDICTOR}]",
     "store.keep=topk"), "topk"), (("data.transfer.source=nois",), "noise"), (("data.transfer.generator.latnt=3",), "latent")])  # fmt: skip
def test_settings_of_modes_that_do_not_fit(refused, overrides, word):
    assert word in refused(*overrides, code=2)


@pytest.mark.parametrize(("sweep", "word"), [
    ("{over: {training.lrr: [1, 2]}}", "lr"), ("{over: {data.split.seed: [1, 2]}}", "can't vary"), ("{method: gird, over: {}}", "grid"),
    ("{over: {training.lr: []}}", "training.lr"), ("{over: {objective: [logits.SoftTargts]}}", "logits.SoftTargets")])  # fmt: skip
def test_a_sweep_that_can_not_be_made(refused, sweep, word):
    assert word in refused(f"sweep={sweep}", words=("compare", "toy.yaml"), code=2)


# --- hostile names


class Page(HTMLParser):
    """Tags and attributes of a page, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def harmless(text: str) -> bool:
    """Nothing in it that a terminal would obey."""
    return all(letter.isprintable() or letter == "\n" for letter in text)


def test_hostile_class_names_are_shown_and_do_nothing(understudy, tmp_path):
    """Prevents: a class name from a CSV runs a script in the report, renames the terminal's window, or breaks the card."""
    path = tmp_path / "a.csv"
    cell = '"' + HOSTILE.replace('"', '""') + '"'
    lines = [f"{(i % 5) * 0.9 + i % 2 * 8},{i * 0.37:.2f},{cell if i % 2 else PLAIN}" for i in range(80)]
    path.write_text("x,z,y\n" + "\n".join(lines) + "\n")
    teacher = "teacher={kind: predictor, estimator: LogisticRegression, rights: {terms: own, licence: '<b>mine</b>'}}"
    (tmp_path / "toy.yaml").write_text(
        "name: toy\nstudent: {model: {arch: linear}}\nobjective: [{kind: logits.SoftTargets}, {kind: labels.CrossEntropy}]\n"
        f"data: {{kind: table, path: a.csv, label: y, split: {{validation: 0.2, test: 0.3}}}}\n{teacher.replace('=', ': ', 1)}\n"
        "training: {epochs: 3, batch_size: 16, seeds: 2}\nexport: [safetensors, onnx]\n"
    )
    code, out, err = understudy("run", "toy.yaml")
    assert code == 0, err
    assert harmless(out) and harmless(err)
    run = tmp_path / "runs/toy"
    page = (run / "report.html").read_text()
    seen = Page(page)
    assert "script" not in seen.tags and "onerror" not in seen.attributes and "<b>mine" not in page
    assert "onerror=alert" in html.unescape(page), "it is shown all the same"
    card = (run / "student/README.md").read_text()
    assert "<img" not in re.sub(r"`[^`]*`", "", card) and not re.search(CONTROL, card)
    assert not re.search(r"(?<!\\)\[a\]\(javascript", re.sub(r"`+.*?`+", "", card))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["arms"]["distilled"]["worst_slice"]["name"] in (f"class={HOSTILE}", f"class={PLAIN}"), "data stay as they are"
    for words in (["evaluate", run / "student", "toy.yaml"], ["predict", run / "student", path], ["runs", "show", "toy"], ["runs", "list"],
                  ["check", "toy.yaml"], ["export", "toy", "safetensors"], ["report", "toy"]):  # fmt: skip
        code, out, err = understudy(*words)
        assert code == 0, (words, err)
        assert harmless(out) and harmless(err), words
    for words in (
        ["predict", run / "student", path, "--json"],
        ["evaluate", run / "student", "toy.yaml", "--json"],
        ["run", "toy.yaml", "--json"],
    ):
        code, out, err = understudy(*words)
        assert code == 0, err
        assert not re.search(CONTROL, out), f"{words}: a terminal would obey it"
        if words[0] == "predict":
            assert list(json.loads(out)[0]) == sorted([HOSTILE, PLAIN]), "and the document says the name as it is"
    assert not re.search(CONTROL, page.replace("\t", " ")), "nor does a terminal that shows the page's source"


@pytest.mark.slow
@pytest.mark.parametrize("name", [HOSTILE.replace("/", ""), b"caf\xe9", "new\nline", "-rf", "ü 漢 😀"])
def test_hostile_folder_and_file_names(understudy, tmp_path, toy, name):
    """Prevents: a run that ends with an error after all its work, because a class is called caf\\xe9 in Latin-1."""
    folder = pictures(tmp_path / "pics", [PLAIN, name])
    (tmp_path / "toy.yaml").write_text(recipe.to_yaml(recipe.resolved(toy.recipe(*of_images(folder), "export=[safetensors, onnx]"))))
    code, out, err = understudy("run", "toy.yaml")
    assert code == 0, err
    assert harmless(out) and harmless(err)
    shown = os.fsdecode(name)
    run = tmp_path / "runs/toy"
    assert json.loads((run / "student/config.json").read_text())["classes"] == sorted([PLAIN, shown])
    json.loads((run / "summary.json").read_text())
    assert (
        set(Page((run / "report.html").read_text()).tags).isdisjoint({"script", "iframe"})
        and "alert(1)>" not in (run / "report.html").read_text()
    )
    for words in (["evaluate", run / "student", "toy.yaml"], ["predict", run / "student", folder / PLAIN / "0.png"]):
        code, out, err = understudy(*words)
        assert code == 0 and harmless(out) and harmless(err), (words, err)


def test_a_hostile_file_name_in_a_message(refused, tmp_path):
    message = refused(f"data={{kind: table, path: {json.dumps(str(tmp_path / HOSTILE.replace('/', '')))}, label: y, split: {{test: 0.3}}}}")
    assert harmless(message) and "onerror" in message


# --- a full disk


class Full:
    """A disk on which the n-th write fails, and every one after it.

    What counts as a write: data written to a file opened for writing (half of it arrives), a file or folder made, a name put in place
    (mkdir, link, rename, replace), fsync, and a commit of SQLite that changed something. Patched are `open`, those functions of `os`,
    and the connection class of the store's manifest: the only places where understudy's own files are written.
    """

    def __init__(self, folder: Path, fail_at: int | None) -> None:
        self.folder, self.fail_at, self.count = str(folder), fail_at, 0
        self.kinds: list[tuple[str, str]] = []

    def write(self, path, what="write") -> bool:
        """Count a write under the folder; True where it fails."""
        if not os.path.abspath(os.fspath(path)).startswith(self.folder):
            return False
        self.count += 1
        self.kinds.append((what, re.sub(r"[0-9a-f]{16,}|\d+", "#", os.path.relpath(path, self.folder))))
        return self.fail_at is not None and self.count >= self.fail_at

    def refuse(self, path, what):
        if self.write(path, what):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    def install(self, monkeypatch):
        real = {name: getattr(os, name) for name in ("replace", "rename", "link", "mkdir", "fsync")}
        opened = builtins.open

        def two(name):
            def call(source, target, **more):
                self.refuse(target, name)
                return real[name](source, target, **more)

            return call

        for name in ("replace", "rename", "link"):
            monkeypatch.setattr(os, name, two(name))

        def mkdir(path, *more, **named):
            if not os.path.exists(path):
                self.refuse(path, "mkdir")
            return real["mkdir"](path, *more, **named)

        def fsync(descriptor):
            self.refuse(os.readlink(f"/proc/self/fd/{descriptor}"), "fsync")
            return real["fsync"](descriptor)

        def open_(path, mode="r", *more, **named):
            file = opened(path, mode, *more, **named)
            if isinstance(path, int) or not set(mode) & set("wax+") or Path(path).name == ".lock" or "_locks" in str(path):
                return file
            return Half(file, path, self)

        monkeypatch.setattr(os, "mkdir", mkdir)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(builtins, "open", open_)
        monkeypatch.setattr(io, "open", open_)
        full = self

        class Connection(sqlite3.Connection):
            changes = 0

            def execute(self, statement, *more):
                wrote = statement == "COMMIT" and self.total_changes > self.changes
                self.changes = self.total_changes
                if wrote and full.write(full.folder, "commit"):
                    error = sqlite3.OperationalError("database or disk is full")
                    error.sqlite_errorcode = sqlite3.SQLITE_FULL
                    raise error
                return super().execute(statement, *more)

        connect = sqlite3.connect
        monkeypatch.setattr(manifest.sqlite3, "connect", lambda *words, **named: connect(*words, factory=Connection, **named))


class Half:
    """A file of which only the first half of the failing write arrives."""

    def __init__(self, file, path, full) -> None:
        self.file, self.path, self.full = file, path, full

    def write(self, data):
        if self.full.write(self.path):
            self.file.write(data[: len(data) // 2])
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.path))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()


def whole(folder: Path) -> None:
    """Every file below the folder is one that can be read, and none is temporary."""
    for path in folder.rglob("*"):
        assert not path.name.endswith(".tmp"), path
        if not path.is_file():
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        elif path.suffix == ".safetensors":
            with safe_open(path, "np") as file:
                assert list(file.keys())
        elif path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict)
        elif path.suffix == ".html":
            assert path.read_text().rstrip().endswith("</html>")
        else:
            assert path.suffix in (".sqlite", ".md", ".tmp") or path.name in (".lock", "lock") or "_locks" in path.parts, path


SMALL = ("training.seeds=1", "training.epochs=1", "teacher.train.epochs=6", "training.control=none", "training.control_reason=small",
         "data.split.test=0.3", "training.precision=float32", "teacher.train.precision=float32")  # fmt: skip


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_write(tmp_path, toy, monkeypatch):
    """Prevents: a full disk leaves half a file that the next start believes, or a run that can't go on when there is room again."""
    wanted = toy.recipe(*SMALL)
    (tmp_path / "count").mkdir()
    with monkeypatch.context() as patch:
        counting = Full(tmp_path / "count", None)
        counting.install(patch)
        expected = pipeline.run(wanted, options=pipeline.Options(runs=tmp_path / "count" / "runs", checkpoint_seconds=0)).summary
    assert counting.count > 100
    last = {kind: number for number, kind in enumerate(counting.kinds, 1)}
    first = {kind: number for number, kind in reversed(list(enumerate(counting.kinds, 1)))}
    # between write and replace, fsync of the file changes nothing that the next start can see: the test below has it
    tried = {number for (what, place), number in first.items() if (what, place[-4:]) != ("fsync", ".tmp")}
    tried = sorted(tried | {number for (what, _), number in last.items() if what in ("replace", "commit")})
    assert len(tried) > 70
    for number in tried:
        folder = tmp_path / f"disk-{number}"
        options = pipeline.Options(runs=folder / "runs", checkpoint_seconds=0)
        folder.mkdir()
        with monkeypatch.context() as patch:
            Full(folder, number).install(patch)
            try:
                pipeline.run(wanted, options=options)
                raise AssertionError(f"write {number} failed and nobody noticed")
            except Exception as error:
                assert not isinstance(error, AssertionError), error
                assert explain(error, debug=False) == 3, f"write {number}: {type(error).__name__}: {error}"
        whole(folder)
        again = pipeline.run(wanted, options=options)
        assert again.summary == expected, f"after write {number} failed"
        whole(folder)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    """The same for the one function that writes files."""
    for number in range(1, 5):
        path = tmp_path / str(number) / "a.json"
        atomic.write_json(path, [1])
        with monkeypatch.context() as patch:
            Full(tmp_path, number).install(patch)
            with pytest.raises(OSError, match="space"):
                atomic.write_json(path, [2])
        assert [item.name for item in path.parent.iterdir()] == ["a.json"]
        assert json.loads(path.read_text()) in ([1], [2])
