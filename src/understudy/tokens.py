"""Tokenizers: text <-> numbers, as one JSON text of the `tokenizers` library, which travels with every model that reads text.

    tokenizer = train("bpe", texts, size=8000)       # or read("a folder in the Hugging Face layout")
    tokenizer.encode(["a text"], length=64)                # (N, L) int32, the rest filled up with `tokenizer.pad`

The `tokenizers` library is imported where it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from understudy.errors import DataError, RecipeError, four_parts

Algorithm = Literal["bpe", "words"]
FILE = "tokenizer.json"
PADDING, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PADDING, UNKNOWN, START, END, MASK)
"""Of the tokenizers that are trained here, in this order: the names that BERT gave them."""
START_NAMES = (START, "<s>", "<|begin_of_text|>", "<bos>", "<|startoftext|>", "<|endoftext|>")
END_NAMES = (END, "</s>", "<|end_of_text|>", "<eos>", "<|endoftext|>")
"""What a tokenizer may call the start and the end of a document."""
PAD_NAMES = (PADDING, "<pad>", "<|pad|>", "<|endoftext|>", "</s>")
"""What a tokenizer from elsewhere may call its padding, where its files do not say."""
MASK_NAMES = (MASK, "<mask>", "<|mask|>")
"""What it may call the token that stands for one that is hidden."""


@dataclass(frozen=True)
class Tokenizer:
    """text: what `tokenizers.Tokenizer.to_str` gives. pad: the id that fills rows up; no text gives it elsewhere than at the end."""

    text: str
    pad: int

    def __post_init__(self) -> None:
        try:
            plain = json.dumps(json.loads(self.text), ensure_ascii=False)  # one form, whoever wrote it
        except ValueError as error:
            raise unreadable(error) from None
        object.__setattr__(self, "text", plain)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all that decides what a text becomes."""
        return hashlib.sha256(f"{self.pad}\n{self.text}".encode()).hexdigest()

    @cached_property
    def inner(self) -> Any:
        """The library's object, without padding or truncation of its own."""
        kit = library()
        try:
            made = kit.Tokenizer.from_str(self.text)
        except Exception as error:  # the library raises plain Exceptions
            raise unreadable(error) from None
        made.no_padding()
        made.no_truncation()
        return made

    @cached_property
    def literal(self) -> Any:
        """The same, but what looks like a special token in a text is text: nobody can end a document by writing its mark."""
        made = library().Tokenizer.from_str(self.inner.to_str())
        made.encode_special_tokens = True
        return made

    @cached_property
    def size(self) -> int:
        """One more than the largest id: rows of an embedding."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    def lengths(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) how many tokens each text becomes, special ones included."""
        return np.array([len(one.ids) for one in self.inner.encode_batch_fast(list(texts))], dtype=np.int64)

    def encode(self, texts: Sequence[str], length: int) -> np.ndarray:
        """(N, length) int32: ids, filled up with `pad`. What is longer loses its end, but keeps its closing special tokens."""
        found = self.inner.encode_batch_fast(list(texts))
        rows = np.full((len(found), length), self.pad, dtype=np.int32)
        closing = self.closing
        for row, one in enumerate(found):
            ids = one.ids
            if len(ids) > length:
                ids = ids[: length - len(closing)] + list(closing) if length > len(closing) else ids[:length]
            rows[row, : len(ids)] = ids
        return rows

    @property
    def files(self) -> dict[str, bytes]:
        """What transformers looks for beside a model."""
        said = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": self.inner.id_to_token(self.pad)}
        return {FILE: self.text.encode(), "tokenizer_config.json": json.dumps(said).encode()}

    @cached_property
    def ends(self) -> tuple[int, int]:
        """(start, end): the tokens before and behind a document; one token may be both. DataError where there are none."""
        first, last = (
            next((int(found) for name in names if (found := self.inner.token_to_id(name)) is not None), None)
            for names in (START_NAMES, END_NAMES)
        )
        first, last = last if first is None else first, first if last is None else last
        if first is None or last is None:
            raise DataError(four_parts(
                "the tokenizer has no mark for the start or end of a document", got="none of " + ", ".join((*START_NAMES, *END_NAMES)),
                expected="one of them", otherwise="A model could not tell one document from the next",
                do="Take the tokenizer of a generative model, or train one: student.tokenizer: {kind: bpe}"))
        return first, last

    @cached_property
    def mask(self) -> int:
        """The token that stands where another one is hidden. DataError where there is none."""
        found = next((found for name in MASK_NAMES if (found := self.inner.token_to_id(name)) is not None), None)
        if found is None:
            raise DataError(four_parts(
                "the tokenizer has no token for what is hidden", got="none of " + ", ".join(MASK_NAMES), expected="one of them",
                otherwise="A model would see the tokens that it has to tell", do="Take the tokenizer of a masked language model"))
        return int(found)

    @cached_property
    def special(self) -> frozenset[int]:
        """The tokens that no text spells: marks, padding, the unknown one."""
        return frozenset(number for number, one in self.inner.get_added_tokens_decoder().items() if one.special)

    @cached_property
    def texts(self) -> list[str]:
        """What each id reads as; a part of a letter reads as a replacement character, a special token as nothing."""
        return [self.inner.decode([number]) for number in range(self.size)]

    @cached_property
    def closing(self) -> tuple[int, ...]:
        """The special tokens that stand behind every text."""
        one = self.inner.encode("a")
        marks, ids = list(one.special_tokens_mask), list(one.ids)
        count = next((number for number, mark in enumerate(reversed(marks)) if not mark), len(marks))
        return tuple(ids[len(ids) - count :])


def unreadable(error: Exception) -> DataError:
    """The error for a tokenizer that is none."""
    return DataError(four_parts(
        "the tokenizer can't be read", got=str(error)[:200], expected=f"the {FILE} of the `tokenizers` library",
        otherwise="Every text would become other tokens than in training", do="Take the file that came with the model"))


def library() -> Any:
    """The `tokenizers` package. RecipeError where it is not installed."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # it warns, and may hang, in processes that fork
    try:
        import tokenizers
    except ImportError:
        raise RecipeError(four_parts(
            "text needs the tokenizers package", got="it is not installed", expected="tokenizers",
            otherwise="Text could not be turned into numbers", do="Run pip install tokenizers")) from None
    return tokenizers


def train(algorithm: Algorithm, texts: Iterable[str], size: int, *, lowercase: bool = True, closed: bool = True) -> Tokenizer:
    """A tokenizer of these texts; the same texts give the same one, in every process.

    closed: whether a text that is encoded gets its end mark, or only its start, as something is to be written behind it.

    algorithm: "bpe", bytes merged by frequency (Sennrich et al. 2016, arXiv 1508.07909), to which nothing is unknown; "words", whole words
    and signs, the rare ones are unknown. size: at most so many tokens. lowercase: capitals and accents are dropped.
    """
    kit = library()
    if algorithm == "bpe":
        made = kit.Tokenizer(kit.models.BPE())
        made.pre_tokenizer = kit.pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = kit.decoders.ByteLevel()
        trainer = kit.trainers.BpeTrainer(
            vocab_size=size, special_tokens=list(SPECIAL), initial_alphabet=kit.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
    else:
        made = kit.Tokenizer(kit.models.WordLevel(unk_token=UNKNOWN))
        made.pre_tokenizer = kit.pre_tokenizers.BertPreTokenizer()
        trainer = kit.trainers.WordLevelTrainer(vocab_size=size, special_tokens=list(SPECIAL), show_progress=False)
    if lowercase:
        made.normalizer = kit.normalizers.BertNormalizer(lowercase=True)
    made.train_from_iterator(texts, trainer)
    ends = [(name, SPECIAL.index(name)) for name in (START, END)]
    last = f" {END}" if closed else ""
    made.post_processor = kit.processors.TemplateProcessing(
        single=f"{START} $A{last}", pair=f"{START} $A {END} $B:1{last and last + ':1'}", special_tokens=ends
    )
    return Tokenizer(made.to_str(), SPECIAL.index(PADDING))


def read(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a folder in the Hugging Face layout. Raises DataError where it has no tokenizer.json, or no padding token."""
    path = Path(folder) / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(four_parts(
            f'"{path}" can\'t be read', got=getattr(error, "strerror", None) or str(error),
            expected=f"the {FILE} that lies beside the weights", otherwise="Its texts would become other tokens than in training",
            do="Check the path; a model without one gets it by tokenizer.save_pretrained(folder)")) from None
    made = Tokenizer(text, 0)
    return Tokenizer(text, _padding(Path(folder), made.inner))


def _padding(folder: Path, inner: Any) -> int:
    """The id of the padding token: as the folder's configuration says, else by name."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            said = json.loads((folder / name).read_text(encoding="utf-8")).get("pad_token")
        except (OSError, ValueError, AttributeError):
            continue
        said = said.get("content") if isinstance(said, dict) else said
        if said is not None and (found := inner.token_to_id(str(said))) is not None:
            return int(found)
    found = next((found for name in PAD_NAMES if (found := inner.token_to_id(name)) is not None), None)
    if found is None:
        raise DataError(four_parts(
            f'the tokenizer of "{folder}" has no padding token', got="no pad_token in its configuration",
            expected="one of " + ", ".join(PAD_NAMES),
            otherwise="Rows of different lengths could not be put into a batch, or a word would be taken for the end",
            do="Set pad_token in tokenizer_config.json"))
    return int(found)


def pruned(tokenizer: Tokenizer, texts: Iterable[str], at_least: int = 1) -> Tokenizer:
    """A WordPiece tokenizer with only those tokens that occur in these texts at least so often, and all single letters.

    A word whose token is gone is spelt by shorter ones, so that nothing becomes unknown that was known. An embedding shrinks with it.
    Raises RecipeError for another kind of tokenizer, whose merges can't be taken out one by one.
    """
    content = json.loads(tokenizer.text)
    if content["model"].get("type") != "WordPiece":
        raise RecipeError(four_parts(
            "only a WordPiece vocabulary can be pruned", got=content["model"].get("type"), expected="WordPiece",
            otherwise="Merges would lead to tokens that are not there", do="Train one: student.tokenizer: {kind: bpe}"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    counts = np.zeros(tokenizer.size, dtype=np.int64)
    for one in tokenizer.inner.encode_batch_fast(list(texts)):
        np.add.at(counts, one.ids, 1)
    special = {one["content"] for one in content.get("added_tokens", ())} | {content["model"]["unk_token"]}
    prefix = content["model"].get("continuing_subword_prefix", "##")
    kept = [
        token
        for token, number in sorted(vocabulary.items(), key=lambda item: item[1])
        if counts[number] >= at_least or token in special or len(token.removeprefix(prefix)) == 1
    ]
    numbers = {token: number for number, token in enumerate(kept)}
    content["model"]["vocab"] = numbers
    for one in content.get("added_tokens", ()):
        one["id"] = numbers[one["content"]]
    _renumber(content.get("post_processor"), numbers)
    pad = next(token for token, number in vocabulary.items() if number == tokenizer.pad)
    return Tokenizer(json.dumps(content, ensure_ascii=False), numbers[pad])


def _renumber(part: Any, numbers: dict[str, int]) -> None:
    """Give the special tokens of a post-processor their new ids, wherever they stand in it."""
    if isinstance(part, dict):
        if isinstance(part.get("ids"), list) and isinstance(part.get("tokens"), list):
            part["ids"] = [numbers[token] for token in part["tokens"]]
        for name in ("sep", "cls"):
            if isinstance(part.get(name), list) and len(part[name]) == 2:
                part[name] = [part[name][0], numbers[part[name][0]]]
        for value in part.values():
            _renumber(value, numbers)
    elif isinstance(part, list):
        for value in part:
            _renumber(value, numbers)
