"""Texts and folders that can't be used as they are: named before anything is trained, with what to do."""

from __future__ import annotations

import json
import sys

import pytest

from understudy import tokens
from understudy.data import from_arrays
from understudy.datasets.text import Dataset
from understudy.errors import DataError, RecipeError
from understudy.preprocess.text import Text
from understudy.stages import reading
from understudy.stages.prepare import Given, prepare

BAG = "{kind: local, model: {arch: bag}, train: {epochs: 1}, rights: {terms: own}}"


@pytest.fixture
def given():
    texts = [f"turn the light {'on' * (1 + 30 * (at < 8))} {at}" for at in range(60)]
    return Given(examples=from_arrays(texts, [("a", "b")[at % 2] for at in range(60)]))


@pytest.mark.parametrize(("content", "words"), [
    (b'{"train": [["caf\xe9", "a"]]}', ["line 1", "UTF-8"]), (b'{"other": [["x", "a"]]}', ["a part named 'other'"]),
    (b'{"train": [[null, "a"], ["x", "b"]]}', ["1 texts are empty"]), (b'[["x", "a"]]', ["not usable"])])
def test_json_that_can_t_be_used(tmp_path, content, words):
    """Prevents: a missing text is learnt as the word None; an unknown part ends as a fault of the program."""
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        Dataset(str(path)).load()
    assert all(word in str(caught.value) for word in words) and "DataError" not in str(caught.value)


def test_two_parts_of_one_kind_are_one(tmp_path):
    """CLINC150 has its out-of-scope sentences in parts of their own."""
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"train": [["x", "a"], ["y", "b"]], "oos_train": [["z", "oos"]], "val": [["w", "a"]]}))
    found = Dataset(str(path)).load()
    assert found.raw.tolist() == ["x", "y", "z", "w"] and found.split.tolist() == ["train"] * 3 + ["validation"]


def test_without_the_package_it_says_so(monkeypatch):
    """Prevents: an install without the extra is told that its tokenizer is broken."""
    made = tokens.train("words", ["a"], 300)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RecipeError, match="got it is not installed.*Run pip install tokenizers"):
        tokens.Tokenizer(made.text, made.pad).inner  # noqa: B018


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz", "a.parquet"])
def test_a_table_is_not_read_as_lines_of_text(tmp_path, name):
    """Prevents: the header and the labels are answered about as if they were sentences."""
    with pytest.raises(DataError, match="one text a line"):
        Text(tokens.train("words", ["a"], 300), 8).read_input(tmp_path / name)


@pytest.mark.parametrize(("teacher", "more", "word"), [
    (BAG, ["data.transfer={source: noise}"], "makes numbers"), (BAG, ["data.transfer={source: generated}"], "makes numbers"),
    ("{kind: predictor, estimator: GaussianNB, rights: {terms: own}}", [], "predictor reads numbers")])
def test_what_makes_or_takes_numbers_is_refused(toy, given, teacher, more, word):
    """Prevents: noise, or a tree, takes the numbers of tokens for measurements."""
    with pytest.raises(RecipeError, match=word):
        toy.run("data={kind: given, split: {test: 0.3}}", *more, f"teacher={teacher}", "student={model: {arch: bag}}",
                "objective=[{kind: logits.SoftTargets}]", "training.control=init_only", given=given)
    assert not toy.trained()


def test_no_model_reads_more_than_it_has_positions_for(toy, given, folders, tmp_path):
    """Prevents: a run that stops at its first long text, in the middle of the teacher's training."""
    bert = folders.encoder(tmp_path / "bert")
    teacher = f"{{kind: local, model: {{arch: pretrained, path: {bert}}}, train: {{epochs: 1}}, rights: {{terms: own}}}}"
    change = ("data={kind: given, split: {test: 0.3}}", f"teacher={teacher}", "student={from_teacher: {layers: 1}}")
    data = prepare(toy.recipe(*change), given)
    longest = int(data.read_by({"arch": "bag"}).preprocess.tokenizer.lengths(data.examples.raw.tolist()).max())
    assert longest > 64 and data.shape == (64,) == data.read_by({"arch": "pretrained", "path": str(bert)}).shape
    assert "are longer" in data.notes[0] and data.rows.stored.shape[1] == 64
    with pytest.raises(RecipeError, match="at most 64"):
        prepare(toy.recipe(*change, "student.tokenizer={length: 65}"), given)
    bag = prepare(toy.recipe(*change[:2], "student={model: {arch: bag}, tokenizer: {length: 65}}"), given)
    assert bag.shape == (65,), "a bag has no positions"


def test_positions():
    config = {"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}
    assert reading.positions({"arch": "pretrained", "config": config}) == 512
    behind = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert reading.positions({"arch": "pretrained", "config": behind}) == 512
    silent = {"model_type": "roberta", "max_position_embeddings": 34}
    assert [reading.positions({"arch": "pretrained", "config": silent}, pad) for pad in (0, 1, 3)] == [33, 32, 30]
    assert reading.positions({"arch": "bag"}) is None and reading.positions({"config": {"max_position_embeddings": -1}}) is None


@pytest.mark.slow
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_roberta_reads_as_many_tokens_as_positions_says(pad):
    import torch
    import transformers

    config = transformers.RobertaConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
                                        max_position_embeddings=12, pad_token_id=pad)
    said = {key: value for key, value in config.to_dict().items() if key != "pad_token_id"}
    most = reading.positions({"arch": "pretrained", "config": said}, pad)
    model = transformers.RobertaModel(config).eval()
    model(input_ids=torch.full((1, most), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, most + 1), 5))
