"""tokens.py: text becomes the same numbers everywhere, and a smaller vocabulary knows what the larger one knew."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from understudy import tokens
from understudy.errors import DataError, RecipeError

TEXTS = ["play music", "turn the light on", "turn the lights off", "is it raining", "send money to my bank", "Überweise Geld"] * 3


def trained(kind, **options):
    return tokens.train(kind, TEXTS, 400, **options)


@pytest.fixture
def folder(tmp_path, folders):
    folders.wordpiece().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "[PAD]"}}))
    return tmp_path


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_texts_are_framed_filled_up_and_cut_before_the_last_token(kind):
    made = trained(kind)
    start, end = (made.inner.token_to_id(name) for name in ("[CLS]", "[SEP]"))
    found = made.encode(["turn the light on", "play"], 12)
    assert found.dtype == np.int32 and found.shape == (2, 12) and made.closing == (end,)
    for row in found.tolist():
        last = row.index(made.pad)
        assert row[0] == start and row[last - 1] == end and set(row[last:]) == {made.pad} and max(row) < made.size
    cut = made.encode(["turn the light on"], 4)[0].tolist()
    assert cut[:3] == found[0].tolist()[:3] and cut[3] == end, "the end of the text is lost, and its closing token is not"
    assert made.lengths(["turn the light on"]).tolist() == [found[0].tolist().index(made.pad)]


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_the_same_texts_give_the_same_tokenizer_in_another_process(kind):
    """Prevents: the cache holds answers for a tokenizer that no later process makes again."""
    code = f"from understudy import tokens; print(tokens.train({kind!r}, {TEXTS!r}, 400).fingerprint)"
    found = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout for _ in range(3)}
    assert found == {trained(kind).fingerprint + "\n"}


def test_bytes_know_no_unknown_and_words_do():
    text = "schöne grüße, 你好 🙂"
    bpe, words = trained("bpe", lowercase=False), trained("words")
    assert bpe.inner.decode(bpe.inner.encode(text).ids) == text
    assert words.inner.encode(text).tokens[1:-1] == ["[UNK]"] * (len(words.inner.encode(text).tokens) - 2)


def test_capitals_are_kept_where_they_are_asked_for():
    assert trained("words").encode(["PLAY"], 4).tolist() == trained("words").encode(["play"], 4).tolist()
    kept = trained("bpe", lowercase=False)
    assert kept.encode(["PLAY"], 9).tolist() != kept.encode(["play"], 9).tolist()


def test_a_folder_s_own_padding_and_truncation_play_no_part(folder):
    """Prevents: rows of 12 tokens whatever the text, because the file says so."""
    made = tokens.read(folder)
    assert made.pad == 0 and made.lengths(["play music", "play " * 30]).tolist() == [4, 32]


@pytest.mark.parametrize(("name", "file", "said"), [
    ("<pad>", {}, None), ("[PAD]", {}, {"pad_token": "[PAD]"}), ("<blank>", {"pad_token": "<blank>"}, None)])
def test_the_padding_token_is_found(tmp_path, folders, name, file, said):
    folders.wordpiece(pad=name).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(file))
    if said:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps(said))
    assert tokens.read(tmp_path).pad == 0


def test_a_tokenizer_without_padding_is_refused(tmp_path, folders):
    folders.wordpiece(pad="<blank>").save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="no padding token"):
        tokens.read(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"model": 3}', "\udcff"])
def test_a_damaged_tokenizer_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "tokenizer.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="tokenizer"):
        tokens.read(tmp_path)


def test_pruning_keeps_what_the_texts_hold_and_spells_the_rest(folder):
    whole = tokens.read(folder)
    texts = ["play music", "turn the light on"]
    small = tokens.pruned(whole, texts)
    assert small.size < whole.size and small.pad == 0
    pieces = [one.tokens for one in small.inner.encode_batch(texts)]
    assert pieces == [one.tokens for one in whole.inner.encode_batch(texts)], "what was learnt from is read as before"
    other = small.inner.encode("weather").tokens
    assert "[UNK]" not in other and "".join(other[1:-1]).replace("##", "") == "weather", "and nothing becomes unknown"
    vocabulary = small.inner.get_vocab()
    assert sorted(vocabulary.values()) == list(range(small.size)) and "weather" not in vocabulary
    assert set("abcdefghijklmnopqrstuvwxyz") < set(vocabulary)
    assert small.inner.encode("play").ids[0] == vocabulary["[CLS]"] and small.closing == (vocabulary["[SEP]"],)
    assert tokens.pruned(whole, texts * 2, at_least=2).text == small.text


def test_merges_can_t_be_pruned():
    with pytest.raises(RecipeError, match="only a WordPiece"):
        tokens.pruned(trained("bpe"), TEXTS)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(RecipeError, match="Run pip install tokenizers"):
        trained("bpe")
