"""How tokens are spelt: the bytes of every token, where tokens lie in a text, and how a tokenizer begins to spell given bytes.

What alignment.py rests on; needs the `tokenizers` library only through tokens.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from understudy.errors import DataError, RecipeError, four_parts
from understudy.tokens import Tokenizer

SPACE = "\u2581"  # how SentencePiece writes a space
NOT_PLACED = -1


@dataclass(frozen=True)
class Spelling:
    """What the JSON of a tokenizer says about the letters of its tokens."""

    tokenizer: Tokenizer

    @cached_property
    def content(self) -> dict[str, Any]:
        """The JSON, in the form of the library that is installed."""
        return dict(json.loads(self.tokenizer.inner.to_str()))

    @cached_property
    def kinds(self) -> set[str]:
        """The types of all parts before the model, and of the decoder."""
        parts = [self.content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
        return {str(part["type"]) for part in _parts(parts) if "type" in part}

    @property
    def by_bytes(self) -> bool:
        """Whether tokens are written in the alphabet of 256 signs that GPT-2 gave the bytes."""
        return "ByteLevel" in self.kinds

    @cached_property
    def by_spaces(self) -> bool:
        """Whether tokens are written with the sign that SentencePiece has for a space."""
        named = [part.get("content") for part in _parts([self.content.get("normalizer"), self.content.get("decoder")])]
        return "Metaspace" in self.kinds or SPACE in named or " " in named and not self.by_bytes

    @property
    def prefix(self) -> str | None:
        """What a WordPiece token carries that goes on with a word ("##"); None for other models."""
        model = self.content["model"]
        return str(model.get("continuing_subword_prefix", "##")) if model["type"] == "WordPiece" else None

    @cached_property
    def drops_spaces(self) -> bool:
        """Whether white space between words is in no token (BERT's way)."""
        pieces = self.pieces("a b")
        return len(pieces) > 1 and not any(sign in piece for piece in pieces for sign in (" ", "\u0120", SPACE))

    @cached_property
    def special(self) -> dict[int, str]:
        """{id: content} of the special tokens, the unknown one included."""
        found = {int(one["id"]): str(one["content"]) for one in self.content.get("added_tokens", ()) if one["special"]}
        unknown = self.unknown
        return found if unknown is None else {**found, unknown: str(self.tokenizer.inner.id_to_token(unknown))}

    @cached_property
    def unknown(self) -> int | None:
        """The id that stands for what can't be spelt."""
        model = self.content["model"]
        if model.get("unk_id") is not None:
            return int(model["unk_id"])
        found = self.tokenizer.inner.token_to_id(model["unk_token"]) if model.get("unk_token") else None
        return None if found is None else int(found)

    @cached_property
    def added(self) -> dict[str, int]:
        """{content: id} of the added tokens that are text, longest first: they are found before anything else."""
        found = {str(one["content"]): int(one["id"]) for one in self.content.get("added_tokens", ()) if not one["special"]}
        return dict(sorted(found.items(), key=lambda item: -len(item[0])))

    @cached_property
    def begins_word(self) -> np.ndarray:
        """(V,) bool: in front of this token stands white space that the tokenizer drops. Signs are taken to stand without."""
        found = np.zeros(self.tokenizer.size, dtype=bool)
        if self.drops_spaces:
            for token, number in self.tokenizer.inner.get_vocab(with_added_tokens=False).items():
                found[number] = token[0].isalnum() and (self.prefix is None or not token.startswith(self.prefix))
        return found

    def token_bytes(self) -> list[bytes | None]:
        """See the function of this name."""
        if self.content["model"].get("end_of_word_suffix"):
            raise RecipeError(four_parts(
                "the spelling of this tokenizer's tokens is not known", got="a BPE that marks the ends of words (as CLIP's does)",
                expected="bytes (GPT-2, Llama 3, Qwen), WordPiece, whole words, or SentencePiece",
                otherwise="Tokens of teacher and student would be taken for others", do="Take a teacher with another tokenizer"))
        found: list[bytes | None] = [None] * self.tokenizer.size
        for token, number in self.tokenizer.inner.get_vocab(with_added_tokens=False).items():
            found[number] = self._bytes(token)
        for content, number in self.added.items():
            found[number] = content.encode()
        for number in self.special:
            found[number] = None
        return found

    def _bytes(self, token: str) -> bytes:
        if self.by_bytes:
            return b"".join(_BYTES.get(sign) or sign.encode() for sign in token)
        if self.content["model"].get("byte_fallback") and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        if self.by_spaces:
            token = token.replace(SPACE, " ")
        if self.prefix and token != self.prefix:
            token = token.removeprefix(self.prefix)
        return token.encode()

    def normal(self, text: str) -> str:
        """The text as the model's part before the pre-tokenizer leaves it."""
        part = self.tokenizer.inner.normalizer
        return text if part is None else str(part.normalize_str(text))

    def pieces(self, text: str) -> list[str]:
        """The pieces across which nothing is merged."""
        part, normal = self.tokenizer.inner.pre_tokenizer, self.normal(text)
        return [normal] if part is None else [str(piece) for piece, _ in part.pre_tokenize_str(normal)]

    def spell(self, spelt: bytes, before: str) -> list[int]:
        """The tokens with which the tokenizer writes these bytes, where a token ends in front of them; as far as it can say them.

        before: the letter or sign in front of them, "" for nothing: whether a word goes on decides how WordPiece writes it. A BPE that has
        a border inside a word spells what follows as if it stood alone (no merge crossed the border): isolating the bytes is exact there.
        """
        try:
            text = spelt.decode()
        except UnicodeDecodeError as error:
            if self.by_bytes:
                return self._begin("".join(_SIGNS[byte] for byte in spelt))
            text = spelt[: error.start].decode()
        if not text:
            found = self.tokenizer.inner.token_to_id(f"<0x{spelt[0]:02X}>") if spelt else None
            return [] if found is None else [int(found)]
        for content, number in self.added.items():
            if text.startswith(content):
                return [number]
        if not self.normal(before + text).startswith(self.normal(before)):  # a combining sign went into the letter before it
            return []
        pieces, head = self.pieces(before + text), self.pieces(before)[0] if before else ""
        if not pieces or not pieces[0].startswith(head):
            return []
        rest = pieces[0][len(head):]
        words = [self._go_on(rest) if before else self._begin(rest)] if rest else []
        words += [self._begin(piece) for piece in pieces[1:]]
        said = next((number for number, word in enumerate(words) if not word), len(words))
        return [token for word in words[:said] for token in word]

    def _begin(self, piece: str) -> list[int]:
        """The tokens of a piece up to the first special one, which is the unknown one."""
        found = [int(token.id) for token in self.tokenizer.inner.model.tokenize(piece)]
        return found[: next((number for number, token in enumerate(found) if token in self.special), len(found))]

    def _go_on(self, rest: str) -> list[int]:
        """The tokens of what is left of a word."""
        if self.prefix is None:
            return [] if self.content["model"]["type"] == "WordLevel" else self._begin(rest)
        vocabulary, found = self.content["model"]["vocab"], []
        while rest:
            end = next((end for end in range(len(rest), 0, -1) if self.prefix + rest[:end] in vocabulary), None)
            if end is None:
                return []
            found.append(int(vocabulary[self.prefix + rest[:end]]))
            rest = rest[end:]
        return found

    def place(self, text: str, ids: Sequence[int], spelt: Sequence[bytes | None]) -> tuple[np.ndarray, np.ndarray]:
        """(n,) and (n,) int64: at which byte of the text each token starts and ends; NOT_PLACED where that can't be known.

        White space that no token holds belongs to the token behind it. Of the special tokens only the first one behind the text has a
        place, its end. Where the tokens spell the text byte for byte, their lengths say it, in whatever way they were found (also sampled
        by a model); otherwise, as with a normaliser, the library's offsets do, and the tokens have to be those that it gives.
        spelt: `token_bytes` of this tokenizer. Raises DataError where the tokens are not a beginning of the text.
        """
        numbers = np.asarray(ids, dtype=np.int64)
        framing = self.framing(numbers)
        starts, ends = np.full(len(numbers), NOT_PLACED), np.full(len(numbers), NOT_PLACED)
        inner = np.flatnonzero(~framing)
        if len(inner) and inner[-1] - inner[0] + 1 != len(inner):
            raise _not_this_text("special tokens in the midst of the text", "one text: cut packed rows into their documents")
        starts[inner], ends[inner] = self._place_text(text, numbers[inner].tolist(), spelt)
        behind = int(inner[-1]) + 1 if len(inner) else int(np.argmax(framing)) + 1 if len(numbers) > 1 and not text else len(numbers)
        if behind < len(numbers):
            starts[behind] = ends[behind] = ends[inner[-1]] if len(inner) else 0
        return starts, ends

    def framing(self, ids: np.ndarray) -> np.ndarray:
        """(n,) bool: special tokens other than the unknown one, and padding at the end."""
        found = np.isin(ids, [number for number in self.special if number != self.unknown])
        found[np.flatnonzero(ids != self.tokenizer.pad).max(initial=-1) + 1 :] = True
        return np.asarray(found)

    def _place_text(self, text: str, ids: list[int], spelt: Sequence[bytes | None]) -> tuple[np.ndarray, np.ndarray]:
        """`place` without special tokens."""
        whole, parts = text.encode(), [spelt[number] for number in ids]
        if None not in parts and not self.drops_spaces:
            known = [part for part in parts if part is not None]
            said, ends = b"".join(known), np.cumsum([len(part) for part in known], dtype=np.int64)
            for dummy in (0, 1) if self.by_spaces else (0,):  # SentencePiece puts a space in front of the text
                if (b" " * dummy + whole).startswith(said):
                    ends = np.maximum(ends - dummy, 0)
                    return np.concatenate([np.zeros(min(len(ends), 1), dtype=np.int64), ends[:-1]]), ends
        found = self.tokenizer.inner.encode(text, add_special_tokens=False)
        if list(found.ids[: len(ids)]) != ids:
            raise _not_this_text(f"tokens {ids[:8]}... for the text {text[:40]!r}", f"{found.ids[:8]}...")
        at = np.concatenate([[0], np.cumsum([len(sign.encode()) for sign in text], dtype=np.int64)])
        starts, ends = np.full(len(ids), NOT_PLACED), np.full(len(ids), NOT_PLACED)
        offsets = [(int(at[start]), int(at[end])) for start, end in found.offsets]
        offsets.append((len(whole) + 1, len(whole) + 1))
        reached, last = 0, 0  # as far as the offsets went, and where the last token ended, or NOT_PLACED
        for number in range(len(ids)):
            start, end = offsets[number]
            start = reached if start >= reached else last  # or within a letter: behind the part that is said
            reached = max(reached, end)
            part = parts[number]
            if offsets[number + 1][0] < reached:  # the next one shares a letter with this one
                holds = start != NOT_PLACED and part is not None and whole[start : start + len(part)] == part
                last = start + len(part) if holds and part is not None else NOT_PLACED
            else:
                last = reached
            starts[number], ends[number] = start, last
        return starts, ends


def token_bytes(tokenizer: Tokenizer) -> list[bytes | None]:
    """(V,) the bytes of text that each token stands for; None for special tokens, for the unknown one, and for ids without a token.

    In the form that the tokenizer's own normaliser gives the text. "##ing" is b"ing"; a word of a tokenizer that drops white space comes
    without the space in front of it; a SentencePiece token comes with it. Byte-level tokens may be parts of letters.

    Raises RecipeError for a BPE that marks the ends of words.
    """
    return Spelling(tokenizer).token_bytes()


def same(one: Spelling, other: Spelling) -> bool:
    """Whether both cut every text into the same tokens, whatever their numbers: one family, or one vocabulary reordered."""
    def rules(spelling: Spelling) -> tuple[Any, ...]:
        model = dict(spelling.content["model"])
        scores = model.pop("vocab")
        model.pop("unk_id", None)
        tokens = dict(scores) if isinstance(scores, list) else set(scores)  # scores of Unigram are rules, ids are not
        for content in spelling.special.values():
            tokens.pop(content, None) if isinstance(tokens, dict) else tokens.discard(content)
        return spelling.content["normalizer"], spelling.content["pre_tokenizer"], model, tokens, set(spelling.added)
    return rules(one) == rules(other)


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Every dictionary within."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from _parts(one)


def _not_this_text(got: str, expected: str) -> DataError:
    return DataError(four_parts(
        "tokens and text don't belong together", got=got, expected=expected,
        otherwise="The teacher's word for one place would be taught at another", do="Pass the ids that the tokenizer gave this very text"))


def _alphabet() -> dict[int, str]:
    """GPT-2's signs of the bytes: printable ones for themselves, the others from U+0100 upwards."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) if byte in printable else chr(256 + hidden.index(byte)) for byte in range(256)}


_SIGNS = _alphabet()
_BYTES = {sign: bytes([byte]) for byte, sign in _SIGNS.items()}
