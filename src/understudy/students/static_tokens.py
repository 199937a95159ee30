"""The tokens of a static embedding: which there are, what the teacher is asked about for each, and how often each is expected in text."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from understudy import tokens
from understudy.errors import DataError, RecipeError, four_parts
from understudy.static_embedding import unknown

UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>")


def tokenizer_of(folder: str | os.PathLike[str]) -> tokens.Tokenizer:
    """The folder's tokenizer; one without a padding token will do, because masks say what counts."""
    file = Path(folder) / tokens.FILE
    if not file.is_file():
        raise DataError(four_parts(
            f'"{folder}" has no tokenizer', got=f"no {tokens.FILE}", expected=f"the {tokens.FILE} that lies beside the weights",
            otherwise="There would be no vocabulary to ask the teacher about",
            do="Save the model's fast tokenizer there: tokenizer.save_pretrained(folder)"))
    return tokens.Tokenizer(file.read_text(encoding="utf-8"), 0)


def expected(tokenizer: tokens.Tokenizer, known: np.ndarray) -> np.ndarray:
    """(V,) how often each token is expected in text, in shares that sum to 1; 0 where not `known`.

    A Unigram tokenizer says it itself: the exponentials of its scores. Else Zipf's law, 1 / (rank + 1), with tokens in the order of their
    ids from rank 1: those that are trained by frequency, as BERT's and all BPEs are, have it roughly so. Where ids are in no such order
    (an alphabetic word list), count in texts.
    """
    model = json.loads(tokenizer.text)["model"]
    if model.get("type") == "Unigram":
        found = np.zeros(len(known))
        found[:len(model["vocab"])] = np.exp([score for _, score in model["vocab"]])
    else:
        found = 1 / (np.cumsum(known) + 1.0)
    found = np.where(known, found, 0.0)
    return found / found.sum()


def counted(tokenizer: tokens.Tokenizer, known: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """(V,) share of each token in the texts, each counted once more than it occurs; 0 where not `known`."""
    found = known.astype(np.float64)
    for start in range(0, len(texts), 1024):
        for one in tokenizer.inner.encode_batch_fast(list(texts[start:start + 1024]), add_special_tokens=False):
            np.add.at(found, one.ids, 1)
    found = np.where(known, found, 0.0)
    return found / found.sum()


def frequent_words(source: tokens.Tokenizer, texts: Sequence[str], most: int, at_least: int = 5) -> list[str]:
    """The most frequent words of the texts that the tokenizer splits, as it sees them (lower case, say); ties in alphabetic order."""
    inner, count = source.inner, Counter[str]()
    for text in texts:
        plain = inner.normalizer.normalize_str(text) if inner.normalizer else text
        count.update(word for word, _ in inner.pre_tokenizer.pre_tokenize_str(plain))
    found = [word for word, times in sorted(count.items(), key=lambda item: (-item[1], item[0])) if times >= at_least and word.isalpha()]
    vocabulary = inner.get_vocab(with_added_tokens=True)
    return [word for word in found if word not in vocabulary][:most]


def bare(source: tokens.Tokenizer, words: Sequence[str] = ()) -> tuple[tokens.Tokenizer, list[tuple[int, ...]]]:
    """(a tokenizer for plain text, for each of its tokens the teacher's ids, none where it gets no vector).

    No special tokens around a text, no padding, no truncation. From vocabularies of whole pieces (WordPiece, WordLevel) special and unused
    tokens are taken out, so that no text spells one; elsewhere ids stay, and special tokens have zeros.
    RecipeError for `words` where the tokenizer is no WordPiece.
    """
    content = json.loads(source.text)
    model, added = content["model"], content.get("added_tokens") or []
    content.update(post_processor=None, padding=None, truncation=None)
    special = {one["content"] for one in added if one.get("special")} | ({model["unk_token"]} if model.get("unk_token") else set())
    if words and model.get("type") != "WordPiece":
        raise RecipeError(four_parts(
            "words can't be added to this tokenizer", got=model.get("type"), expected="WordPiece",
            otherwise="The tokenizer would go on splitting them", do="Leave words out"))
    if model.get("type") in ("WordPiece", "WordLevel"):
        names = [name for name, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
        names = [name for name in names if name == model["unk_token"] or name not in special and not UNUSED.fullmatch(name)]
        new = [word for word in dict.fromkeys(words) if word not in model["vocab"]]
        pieces: list[tuple[int, ...]] = [() if name == model["unk_token"] else (model["vocab"][name],) for name in names]
        pieces += [tuple(one.ids) for one in source.inner.encode_batch_fast(new, add_special_tokens=False)]
        model["vocab"] = {name: at for at, name in enumerate(names + new)}
        content["added_tokens"] = []
        return tokens.Tokenizer(json.dumps(content, ensure_ascii=False), 0), pieces
    pieces = [()] * source.size
    for name, at in source.inner.get_vocab(with_added_tokens=True).items():
        pieces[at] = () if name in special or at == unknown(content) else (at,)
    return tokens.Tokenizer(json.dumps(content, ensure_ascii=False), 0), pieces
