"""One battery over every exporter in `export/`: the artefact agrees with its student, or there is none."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from understudy import kinds, tokens
from understudy.errors import DataError, GateError, RecipeError
from understudy.export._format import Format
from understudy.export._probe import Probe
from understudy.preprocess import Preprocess
from understudy.preprocess.passages import START_MARK, Passages
from understudy.students import artefact

SLOW = {"executorch", "litert", "web"}
"""Formats that take more than three seconds a file."""
WANTED = {"export": "onnxruntime>=", "openvino": "openvino>=", "executorch": "executorch>=", "gguf": "gguf>="}
"""What the command for an extra has to bring, among others."""
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in kinds.names("export")]
ROUNDED = {"onnx_int8"}
"""Formats whose answers differ by more than the order in which numbers are added."""


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of the packages that formats bring


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """(folder, module, probe): a small saved student, and rows whose labels are its own answers."""
    raw = np.random.default_rng(0).integers(0, 256, (700, 8, 8), dtype=np.uint8)
    preprocess = Preprocess.fit("image", raw)
    torch.manual_seed(0)
    module = kinds.configure("models", "mlp", {"hidden": [16]}).build(preprocess.shape, 4).eval()
    folder = tmp_path_factory.mktemp("student") / "student"
    artefact.save(folder, module, model={"arch": "mlp", "hidden": [16]}, shape=preprocess.shape, classes=list("abcd"),
                  preprocess=preprocess.to_dict(), card="# card")
    encoded = preprocess.encode(raw)
    held_out = encoded[:600]
    return folder, module, Probe(held_out, artefact.module_logits(module, preprocess, held_out).argmax(-1), lambda: encoded[600:])


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """(folder, module, probe): a small student that writes."""
    read = Passages(tokens.train("bpe", ["a cat sat", "two dogs ran home"], 300, lowercase=False, closed=False), 16)
    options = {"width": 16, "layers": 1, "heads": 2, "vocabulary": read.vocabulary, "pad": read.pad, "start": read.start}
    torch.manual_seed(0)
    module = kinds.configure("models", "decoder", options).build(read.shape, read.vocabulary).eval()
    folder = tmp_path_factory.mktemp("writer") / "student"
    artefact.save(folder, module, model={"arch": "decoder", **options}, shape=read.shape, preprocess=read.to_dict(), card="# card",
                  classes=[read.tokenizer.inner.id_to_token(number) for number in range(read.vocabulary)])
    return folder, module, Probe(read.encode([f"{START_MARK}a cat ran home {number}" for number in range(40)]))


@pytest.fixture
def student(name, request):
    """One that the format can hold; a package that is not there skips."""
    exporter = kinds.configure("export", name, {})
    try:
        exporter.loaded()  # a package may be there without what it needs
        if name == "web":
            exporter.refuse("classification", {})  # npm may be missing, or its registry
    except RecipeError:
        pytest.skip(f"needs {exporter.extra or name}")
    return request.getfixturevalue("classifier" if "classification" in exporter.tasks else "writer")


@pytest.fixture
def other(student):
    """A student of the same sizes, and other weights."""
    folder, module, _ = student
    torch.manual_seed(1)
    changed = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return changed


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", NAMES)
def test_the_artefact_agrees_and_says_how_well(name, student, tmp_path):
    folder, module, probe = student
    before = contents(folder)
    found = kinds.configure("export", name, {}).export(folder, tmp_path / "out", probe, module)
    assert set(found) >= {"path", "bytes", "parity"} and set(found["parity"]) >= {"max_abs", "argmax_agreement", "rows"}
    assert found["parity"]["rows"] >= 256 and found["parity"]["argmax_agreement"] >= (0.99 if name in ROUNDED else 0.999)
    assert found["parity"]["max_abs"] <= 1e-4 or name in ROUNDED
    assert found["bytes"] > 0 and str(found["path"]).startswith(str(tmp_path / "out"))
    assert contents(folder) == before, "an exporter reads its student"
    assert [item.name for item in tmp_path.iterdir()] == ["out"], "nothing temporary is left"


@pytest.mark.parametrize("name", NAMES)
def test_an_artefact_of_another_student_is_laid_aside(name, student, other, tmp_path):
    """The folder holds other weights than the student that was measured: an artefact made from it would carry the wrong report."""
    folder, module, probe = student
    exporter = kinds.configure("export", name, {})
    exporter.export(folder, tmp_path / "out", probe, module)
    with pytest.raises(GateError) as error:
        exporter.export(folder, tmp_path / "out", probe, other)
    assert error.value.exit_code == 4 and error.value.parity["rows"] >= 256
    assert list((tmp_path / "out").iterdir()) == [error.value.folder] == [tmp_path / "out" / f"{name}.failed"]
    kept = contents(error.value.folder)
    assert len(kept) > 1 and "does not agree" in kept[Path("reason.txt")].decode()
    exporter.export(folder, tmp_path / "out", probe, module)
    assert [item.name for item in (tmp_path / "out").iterdir()] == [name], "a good one takes its place"


def test_formats_share_a_folder_without_touching_each_other(classifier, tmp_path):
    """Each has a config.json: the one that came last, or was removed last, would take the others' with it."""
    folder, module, probe = classifier
    made = {}
    for name in ("safetensors", "onnx", "openvino"):
        exporter = kinds.configure("export", name, {})
        try:
            exporter.export(folder, tmp_path, probe, module)
        except RecipeError:
            continue  # not installed
        assert all(contents(tmp_path)[path] == data for path, data in made.items())
        made = contents(tmp_path)
    assert artefact.load(tmp_path / "safetensors") and {path.parts[0] for path in made} >= {"safetensors", "onnx"}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_that_is_no_student_is_refused(name, student, tmp_path):
    with pytest.raises(DataError):
        kinds.configure("export", name, {}).export(tmp_path, tmp_path / "out", student[2])
    assert not contents(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_lacking_is_said_with_the_command_that_brings_it(name, monkeypatch):
    """Prevents: the run fails at its end, or a recipe can't even be read where the format can't be made."""
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    exporter = kinds.configure("export", name, {})
    assert isinstance(exporter, Format) and exporter.kind == name and bool(exporter.packages) == bool(exporter.extra)
    if exporter.packages:
        with pytest.raises(RecipeError, match=rf"no {exporter.packages[0]}.*pip install .*{WANTED[exporter.extra]}"):
            exporter.refuse(exporter.tasks[0], {})


@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_lacks_another_is_named_with_the_command_that_mends_it(name, tmp_path, monkeypatch):
    """Prevents: a package that was installed without what it needs looks like a bug in the program."""
    exporter = kinds.configure("export", name, {})
    if not exporter.packages:
        pytest.skip("needs no package of its own")
    wanted = (*exporter.packages, *exporter.inside)[-1]

    def load(module):
        if module == wanted:
            raise ModuleNotFoundError("No module named 'ruamel'", name="ruamel")

    monkeypatch.setattr("importlib.util.find_spec", lambda package: "there")
    monkeypatch.setattr("importlib.import_module", load)
    with pytest.raises(RecipeError, match=rf"{name} is .*{wanted} without ruamel.*pip install .*{WANTED[exporter.extra]}"):
        exporter.export(tmp_path, tmp_path / "out", None)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_survives(name):
    exporter = kinds.configure("export", name, {})
    assert kinds.configure("export", name, dataclasses.asdict(exporter)) == exporter
