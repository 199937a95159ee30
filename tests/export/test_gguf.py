"""export/gguf.py: read back, and computed by llama.cpp's formulas and by transformers' own reading of the file."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from understudy import kinds, tokens
from understudy.errors import DataError, GateError, RecipeError
from understudy.export import gguf as exported
from understudy.export._llama import Llama
from understudy.export._probe import Probe
from understudy.preprocess.passages import END_MARK, START_MARK, Passages
from understudy.students import artefact

gguf = pytest.importorskip("gguf", reason="needs gguf")
TEXTS = [f"{START_MARK}{text}{END_MARK}" for text in ("The cat sat at home.", "A bird sang, and ran away", "the dog: 12 cats!")] * 4
TEXTS += [f"{START_MARK}one two{END_MARK}{START_MARK}three four{END_MARK}"]


@pytest.fixture
def make(tmp_path):
    """make(**sizes) -> (folder, module, preprocess, encoded): a saved decoder, far from its small start."""

    def call(lowercase=False, **sizes):
        words = [text.strip(START_MARK + END_MARK) for text in TEXTS]
        read = Passages(tokens.train("bpe", words, 300, lowercase=lowercase, closed=False), 16)
        options = {"width": 24, "layers": 2, "heads": 4, "kv_heads": 2, "vocabulary": read.vocabulary, "pad": read.pad,
                   "start": read.start, **sizes}
        model = kinds.configure("models", "decoder", options)
        torch.manual_seed(0)
        module = model.build(read.shape, read.vocabulary).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
        names = [read.tokenizer.inner.id_to_token(number) or "" for number in range(read.vocabulary)]
        artefact.save(tmp_path / "student", module, model={"arch": "decoder", **dataclasses.asdict(model)}, shape=read.shape, classes=names,
                      preprocess=read.to_dict(), card="# card\n", extra={"run": "small"})
        return tmp_path / "student", module, read, read.encode(TEXTS)

    return call


def exporter(**options):
    return kinds.configure("export", "gguf", options)


@pytest.mark.parametrize("sizes", [{}, {"kv_heads": None, "tied": False}, {"kv_heads": 1, "rope_base": 50.0, "inner": 20}])
def test_the_file_answers_as_the_student(make, tmp_path, sizes):
    folder, module, read, encoded = make(**sizes)
    found = exporter().export(folder, tmp_path / "out", Probe(encoded))
    row = encoded[0][: int((encoded[0] >= 0).sum())].astype(np.int64)
    expected = module(torch.from_numpy(row)[None])[0].detach().numpy()
    model = Llama.read(tmp_path / "out/gguf/model.gguf")
    np.testing.assert_allclose(model.logits(row), expected, rtol=1e-4, atol=1e-4)
    assert ("output.weight" in model.tensors) != sizes.get("tied", True) and found["parity"]["rows"] > len(encoded)
    assert found["bytes"] == (tmp_path / "out/gguf/model.gguf").stat().st_size


def test_a_row_counts_up_to_its_second_document(make, tmp_path):
    """llama.cpp knows no documents within a row: behind the second start it would look at the first, which the student does not."""
    folder, module, read, encoded = make()
    double, alone = encoded[-1], encoded[0]
    cut, whole = exported.first_documents(np.stack([double, alone]), read.start)
    assert (double == read.start).sum() == 2 and (cut == double[: len(cut)]).all() and double[len(cut)] == read.start
    assert whole.tolist() == [number for number in alone.tolist() if number >= 0]


@pytest.mark.slow
def test_transformers_reads_it_as_the_same_model(make, tmp_path):
    """Somebody else's reading of the file: names, sizes, and the order of the rows of queries and keys."""
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    folder, module, read, encoded = make()
    exporter().export(folder, tmp_path / "out", Probe(encoded))
    try:
        other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out/gguf", gguf_file="model.gguf", dtype=torch.float32)
    except ImportError as error:
        pytest.skip(f"needs {error}")
    row = torch.from_numpy(encoded[:1, :6].astype(np.int64))
    with torch.inference_mode():
        torch.testing.assert_close(other.eval()(row).logits, module(row), rtol=1e-4, atol=1e-4)


def test_the_tokenizer_is_inside(make, tmp_path):
    folder, module, read, encoded = make()
    exporter().export(folder, tmp_path / "out", Probe(encoded))
    said = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "out/gguf/model.gguf").fields.items()}
    names = read.tokenizer.inner.get_vocab()
    assert said["tokenizer.ggml.model"] == "gpt2" and said["tokenizer.ggml.tokens"] == sorted(names, key=names.get)
    assert said["tokenizer.ggml.bos_token_id"] == read.start and said["tokenizer.ggml.eos_token_id"] == read.end
    control = {number for number, kind in enumerate(said["tokenizer.ggml.token_type"]) if kind == 3}
    assert control == set(read.tokenizer.special)
    merges = [one if isinstance(one, str) else " ".join(one) for one in json.loads(read.tokenizer.text)["model"]["merges"]]
    assert said["tokenizer.ggml.merges"] == merges and json.loads(said["understudy"])["schema"] == 1


def test_half_the_bytes_within_the_limits_of_rounding(make, tmp_path):
    folder, _, _, encoded = make(width=48, heads=2, kv_heads=None)
    whole = exporter().export(folder, tmp_path / "out", Probe(encoded))
    half = exporter(precision="float16").export(folder, tmp_path / "out", Probe(encoded))
    assert half["parity"]["argmax_agreement"] >= 0.99 and 0 < half["parity"]["max_abs"] < 0.1 and half["bytes"] < 0.65 * whole["bytes"]


def test_queries_that_were_left_as_they_are_would_be_noticed(make, tmp_path, monkeypatch):
    """Prevents: a file with the right names and sizes whose heads turn the wrong places."""
    folder, _, _, encoded = make()
    monkeypatch.setattr(exported, "interleaved", lambda weight, heads: weight)
    with pytest.raises(GateError):
        exporter().export(folder, tmp_path / "out", Probe(encoded))
    assert (tmp_path / "out/gguf.failed/model.gguf").is_file() and not (tmp_path / "out/gguf").exists()


def test_what_gguf_has_no_place_for_is_refused(make, tmp_path):
    with pytest.raises(RecipeError, match="got arch: causal, expected arch: decoder"):
        exporter().refuse("language", {"arch": "causal"})
    with pytest.raises(RecipeError, match="got one of the task classification, expected language"):
        exporter().refuse("classification", {"arch": "mlp"})
    folder, _, read, encoded = make(lowercase=True)
    for refused in (lambda: exporter().export(folder, tmp_path / "out", Probe(encoded)), lambda: exporter().refuse("language", {}, read)):
        with pytest.raises(RecipeError, match="got BPE and ByteLevel and BertNormalizer"):
            refused()
    with pytest.raises(RecipeError):
        exporter(tolerance=0.0)


def test_a_file_that_was_cut_off_says_so(make, tmp_path):
    folder, _, _, encoded = make()
    path = tmp_path / "out/gguf/model.gguf"
    exporter().export(folder, tmp_path / "out", Probe(encoded))
    for content in (path.read_bytes()[:2000], b"GGUF", b"nothing at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match="can't be read"):
            Llama.read(path)
