"""A text's vector is the mean of its tokens' rows, whatever way it is computed, stored or read."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import static_embedding
from understudy.errors import DataError, RecipeError
from understudy.static_embedding import StaticEmbedding, load, pack, unpack
from understudy.tokens import Tokenizer

tokenizers = pytest.importorskip("tokenizers", reason="needs the tokenizers package")
WORDS = ["[UNK]", "play", "music", "the", "##ing", "##s", "a", "b", ".", "é"]
TEXTS = ["play the music.", "playing", "", "the the the the", "zebra", "music zebra a", "a\tb\x00a . b", " ", "The  PLAYS"]


def made(model: object) -> Tokenizer:
    """BERT's rules in front of a model."""
    one = tokenizers.Tokenizer(model)
    one.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    one.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return Tokenizer(one.to_str(), 0)


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    return made(tokenizers.models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))


@pytest.fixture(scope="module")
def model(wordpiece: Tokenizer) -> StaticEmbedding:
    table = np.random.default_rng(0).normal(size=(len(WORDS), 6)).astype(np.float32)
    table[0] = 0
    return StaticEmbedding(table, wordpiece, about={"teacher": "toy", "sif": 3e-4})


def slowly(model: StaticEmbedding, texts: list[str], normalise: bool = True) -> np.ndarray:
    """One text after the other, in float64, the whole text given to the tokenizer at once."""
    unknown, rows = model.tokenizer.inner.token_to_id("[UNK]"), []
    for text in texts:
        ids = [at for at in model.tokenizer.inner.encode(text, add_special_tokens=False).ids if at != unknown]
        vectors = [model.table[at if model.mapping is None else model.mapping[at]].astype(np.float64)
                   * (1.0 if model.weights is None else float(model.weights[at])) for at in ids]
        mean = np.mean(vectors, axis=0) if vectors else np.zeros(model.dimensions)
        length = np.linalg.norm(mean)
        rows.append(mean / length if normalise and length else mean)
    return np.array(rows).reshape(len(texts), model.dimensions)


def test_a_text_is_the_mean_of_its_tokens(model):
    """By hand: "playing" is play + ##ing, halved."""
    found = model.encode(["playing", "the the"], normalise=False)
    np.testing.assert_allclose(found[0], (model.table[1] + model.table[4]) / 2, rtol=1e-6)
    np.testing.assert_allclose(found[1], model.table[3], rtol=1e-6)


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("kind", ["plain", "weights", "mapping", "float16", "int8"])
def test_every_form_of_the_table_gives_the_slow_answer(model, kind, normalise):
    forms = {
        "plain": model, "float16": model.to("float16"), "int8": model.to("int8"),
        "weights": StaticEmbedding(model.table, model.tokenizer, weights=np.linspace(0.5, 2, len(WORDS)).astype(np.float32)),
        "mapping": StaticEmbedding(model.table[:4], model.tokenizer, weights=np.linspace(1, 3, len(WORDS)).astype(np.float32),
                                   mapping=np.arange(len(WORDS)) % 4),
    }
    found = forms[kind].encode(TEXTS, normalise=normalise, batch=4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, slowly(forms[kind], TEXTS, normalise), atol=1e-6)  # sums in float32


def test_a_text_without_a_known_token_is_zero_and_unknown_ones_do_not_count(model):
    found = model.encode(["", "zebra", "music zebra", "music"], normalise=False)
    assert not found[:2].any()
    np.testing.assert_array_equal(found[2], found[3])
    assert np.isfinite(model.encode([""])).all() and model.encode([]).shape == (0, 6)


@settings(max_examples=50)
@given(st.lists(st.text(st.sampled_from("playthemusicingAÉé́Σ漢 .\t\n\x00\u00a0\u3000‍"), max_size=30), max_size=4))
def test_words_that_are_remembered_give_the_tokens_of_the_whole_text(texts):
    """Prevents: a sign that the tokenizer joins or splits across a space is cut differently by the memo of words."""
    wordpiece = made(tokenizers.models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    model = StaticEmbedding(np.zeros((len(WORDS), 2), np.float32), wordpiece)
    assert model._splits
    ids, counts = model.tokens(texts)
    whole = [[at for at in wordpiece.inner.encode(text, add_special_tokens=False).ids if at] for text in texts]
    assert counts.tolist() == [len(one) for one in whole] and ids.tolist() == [at for one in whole for at in one]


def test_only_rules_that_split_at_spaces_are_remembered_by_word():
    """A byte BPE joins a space to the word behind it: its texts are read whole."""
    one = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "Ġ": 1, "Ġa": 2}, [("Ġ", "a")]))
    one.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = StaticEmbedding(np.eye(3, dtype=np.float32), Tokenizer(one.to_str(), 0))
    assert not model._splits
    assert model.tokens(["a a"])[0].tolist() == [0, 2]


def test_the_memo_stays_small(model, monkeypatch):
    monkeypatch.setattr(static_embedding, "MEMO", 3)
    fresh = StaticEmbedding(model.table, model.tokenizer)
    for texts in (TEXTS[:3], TEXTS[3:6], TEXTS):
        np.testing.assert_allclose(fresh.encode(texts), slowly(model, texts), atol=1e-6)
    assert len(fresh._memo) <= len({word for text in TEXTS for word in text.split(" ")})


def test_int8_keeps_every_row_to_half_a_step(model):
    """Prevents: one scale for the table, by which rows that frequency weighting made small become zeros."""
    vectors = model.vectors() * np.logspace(0, -5, len(WORDS))[:, None].astype(np.float32)
    small = StaticEmbedding(vectors, model.tokenizer).to("int8")
    assert small.table.dtype == np.int8
    step = np.abs(vectors).max(axis=1, keepdims=True) / 127
    assert (np.abs(small.vectors() - vectors) <= step * 0.5001).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("layout", ["model2vec", "sentence-transformers"])
def test_a_folder_gives_the_same_vectors_again(model, tmp_path, layout, dtype):
    one = model.to(dtype)
    again = load(one.save(tmp_path / "made", layout))
    np.testing.assert_allclose(again.encode(TEXTS), one.encode(TEXTS), atol=1e-7)
    assert again.normalise and again.about["teacher"] == "toy"
    assert one.save(tmp_path / "twice", layout).joinpath("README.md").read_bytes() == (tmp_path / "made" / "README.md").read_bytes()


def test_the_layouts_are_those_that_other_programs_look_for(model, tmp_path):
    """Names, keys and types as model2vec 0.10 and sentence-transformers 6.2 read them, by a reader that is neither."""
    import safetensors.numpy

    one = model.to("int8").save(tmp_path / "one")
    tensors = safetensors.numpy.load_file(one / "model.safetensors")
    assert {name: (value.dtype.name, value.shape) for name, value in tensors.items()} == {
        "embeddings": ("int8", (len(WORDS), 6)), "weights": ("float32", (len(WORDS),))}
    config = json.loads((one / "config.json").read_text())
    assert config["model_type"] == "model2vec" and config["normalize"] is True and config["max_length"] is None
    assert len(tokenizers.Tokenizer.from_file(str(one / "tokenizer.json")).get_vocab()) == len(WORDS)

    other = model.save(tmp_path / "other", "sentence-transformers")
    modules = json.loads((other / "modules.json").read_text())
    assert [(part["path"], part["type"].rsplit(".", 1)[1]) for part in modules] == [
        ("0_StaticEmbedding", "StaticEmbedding"), ("1_Normalize", "Normalize")]
    tensors = safetensors.numpy.load_file(other / "0_StaticEmbedding" / "model.safetensors")
    np.testing.assert_array_equal(tensors["embedding.weight"], model.table)
    assert (other / "0_StaticEmbedding" / "tokenizer.json").is_file() and (other / "config_sentence_transformers.json").is_file()


@pytest.mark.skipif(importlib.util.find_spec("model2vec") is None, reason="needs the model2vec package")
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_model2vec_gives_the_same_vectors(model, tmp_path, dtype):
    from model2vec import StaticModel

    folder = model.to(dtype).save(tmp_path / "made")
    np.testing.assert_allclose(StaticModel.from_pretrained(folder).encode(TEXTS), load(folder).encode(TEXTS), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="needs the sentence-transformers package")
@pytest.mark.parametrize("layout", ["model2vec", "sentence-transformers"])
def test_sentence_transformers_gives_the_same_vectors(model, tmp_path, layout):
    from sentence_transformers import SentenceTransformer

    folder = model.save(tmp_path / "made", layout)
    np.testing.assert_allclose(SentenceTransformer(str(folder), device="cpu").encode(TEXTS), load(folder).encode(TEXTS), atol=1e-5)


def test_safetensors_both_ways():
    """The file is the same to the library and to the few lines that stand in for it."""
    import safetensors.numpy

    parts = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.array([-1, 2], np.int8), "c": np.zeros((0, 4), np.float32)}
    for found in (safetensors.numpy.load(pack(parts)), unpack(pack(parts)), unpack(safetensors.numpy.save(parts))):
        assert found.keys() == parts.keys()
        for name, value in parts.items():
            assert found[name].dtype == value.dtype
            np.testing.assert_array_equal(found[name], value)


def test_no_torch_is_needed(model, tmp_path):
    """Prevents: the model that is shipped for a machine without torch imports it by the way."""
    folder = model.save(tmp_path / "made")
    code = ("import sys; from understudy.static_embedding import load; "
            f"print(load({str(folder)!r}).encode(['play']).shape, 'torch' in sys.modules, 'safetensors' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split(")")[1].split() == ["False", "False"]


@pytest.mark.parametrize(("file", "content"), [
    ("model.safetensors", None), ("model.safetensors", b"\x80\x04pickle"), ("config.json", b"{"), ("tokenizer.json", None),
    ("model.safetensors", "short"), ("config.json", b"[]"),
])
def test_a_folder_that_is_not_whole_is_refused(model, tmp_path, file, content):
    path = model.save(tmp_path / "made") / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-4] if content == "short" else content)
    with pytest.raises(DataError, match="holds no static embedding"):
        load(tmp_path / "made")


def test_another_table_is_refused(model, tmp_path):
    folder, other = model.save(tmp_path / "made"), StaticEmbedding(model.table + 1, model.tokenizer).save(tmp_path / "other")
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(DataError, match="is not the one that was saved"):
        load(folder)


def test_what_is_no_list_of_texts_is_refused(model):
    for wrong in ("play", ["play", None]):
        with pytest.raises(DataError, match="reads a list of texts"):
            model.encode(wrong)
    with pytest.raises(DataError, match="does not fit the tokenizer"):
        StaticEmbedding(model.table[:3], model.tokenizer)
    with pytest.raises(RecipeError, match="no such layout"):
        model.save("nowhere", "onnx")
