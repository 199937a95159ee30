"""alignment.py: what a teacher of other tokens says, in the student's tokens; where it is exact, and what is lost."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from collections import defaultdict

import numpy as np
import pytest
import torch

from understudy import alignment, divergence, tokens
from understudy.alignment import Translation, align, joined, token_bytes, uld
from understudy.errors import DataError, RecipeError
from understudy.records import TopKRows

TEXTS = [
    "the cat sat on the mat", "playing with the cats", "she plays the player's game", "they were there then", "a theatre, (in the north)!",
    "Überweise 20 Geld 你好", "no  two   spaces", "line\nbreak\n\n  indented", "été naïve café 🙂",
] * 3
OTHER = ["playing played plays", "sitting on the matter", "cathedral, catastrophe", "indented lines break", "the thermal theory"] * 4


def bytelevel(size, texts=TEXTS, **options):
    return tokens.train("bpe", texts, size, lowercase=options.get("lowercase", False))


def wordpiece(words):
    """BERT's way, with these tokens behind the special ones."""
    kit = tokens.library()
    vocabulary = {name: number for number, name in enumerate((*tokens.SPECIAL, *words))}
    made = kit.Tokenizer(kit.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = kit.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = kit.pre_tokenizers.BertPreTokenizer()
    made.decoder = kit.decoders.WordPiece()
    return framed(made)


def sentencepiece(words):
    """Llama 2's way: a sign for the space, one in front of the text, bytes for what has no letter. `words` are merged letter by letter."""
    kit = tokens.library()
    letters = sorted({letter for word in words for letter in word} | set("▁abcdefghijklmnopqrstuvwxyz"))
    parts = [f"<0x{byte:02X}>" for byte in range(256)] + letters
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in parts:
                parts.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    vocabulary = {name: number for number, name in enumerate((*tokens.SPECIAL, *parts))}
    made = kit.Tokenizer(kit.models.BPE(vocabulary, merges, unk_token="[UNK]", byte_fallback=True, fuse_unk=True))
    made.normalizer = kit.normalizers.Sequence([kit.normalizers.Prepend("▁"), kit.normalizers.Replace(" ", "▁")])
    made.decoder = kit.decoders.Sequence([kit.decoders.Replace("▁", " "), kit.decoders.ByteFallback(), kit.decoders.Fuse()])
    return framed(made)


def letters(merges, alphabet="abc"):
    """A BPE over a few letters, without any part around it."""
    kit = tokens.library()
    names = [*tokens.SPECIAL, *alphabet, *("".join(pair) for pair in merges)]
    return framed(kit.Tokenizer(kit.models.BPE({name: number for number, name in enumerate(names)}, merges)))


def framed(made):
    kit = tokens.library()
    made.add_special_tokens(list(tokens.SPECIAL))
    made.post_processor = kit.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return tokens.Tokenizer(made.to_str(), 0)


WORDS = wordpiece([
    *"abcdefghijklmnopqrstuvwxyz(),.!'", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"),
    "the", "cat", "play", "##ing", "on"])
PIECES = sentencepiece(["▁the", "▁cat", "▁play", "ing", "▁on", "▁they"])


def ids(tokenizer, text):
    return tokenizer.inner.encode(text).ids


def places(translation, text):
    return translation.places(text, ids(translation.teacher.tokenizer, text), ids(translation.student.tokenizer, text))


def logits(count, size, seed=0):
    return 3 * torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def dense(rows, size, temperature=1.0):
    """(A, size) probabilities of the kept entries, and (A,) the tail."""
    assert list(rows.log_sum_exp) == list(rows.tail_log_mass) == [temperature]
    assert all(len(set(row)) == len(row) for row in rows.ids.tolist()), "no token twice"
    log_probs = rows.logits / temperature - rows.log_sum_exp[temperature][:, None]
    return torch.zeros(len(rows.ids), size).scatter_(1, rows.ids, log_probs.exp()), rows.tail_log_mass[temperature].exp()


def stored(rows, keep, temperature=1.0):
    """TopKRows of dense logits."""
    top, order = rows.topk(keep, dim=1)
    full = torch.logsumexp(rows / temperature, 1)
    best = top[:, 0]
    outside = torch.logsumexp((rows / temperature).scatter(1, order, -torch.inf), 1) - full
    return TopKRows(order, top - best[:, None], {temperature: full - best / temperature}, {temperature: outside})


# --- the bytes of tokens


@pytest.mark.parametrize("made", [bytelevel(400), bytelevel(261)], ids=["merged", "bytes"])
def test_byte_level_tokens_spell_the_text(made):
    spelt = token_bytes(made)
    for text in TEXTS:
        assert b"".join(spelt[number] for number in made.inner.encode(text, add_special_tokens=False).ids) == text.encode()
    assert len(spelt) == made.size and all(spelt[number] is None for number in range(5)) and sum(part is None for part in spelt) == 5


def test_other_families_tokens_are_spelt_as_they_stand_in_a_text():
    spelt = token_bytes(WORDS)
    assert [spelt[number] for number in ids(WORDS, "Playing")] == [None, b"play", b"ing", None]
    spelt = token_bytes(PIECES)
    assert [spelt[number] for number in ids(PIECES, "the é")] == [None, b" the", b" ", b"\xc3", b"\xa9", None]
    words = tokens.train("words", TEXTS, 40)
    assert token_bytes(words)[ids(words, "zzz")[1]] is None, "what is unknown has no spelling"


def test_ids_without_a_token_and_marked_ends_of_words():
    content = json.loads(bytelevel(300).text)
    content["model"]["vocab"] = {token: number + 7 * (number >= 5) for token, number in content["model"]["vocab"].items()}
    spelt = token_bytes(tokens.Tokenizer(json.dumps(content), 0))
    assert spelt[5:12] == [None] * 7 and spelt[12] is not None
    content["model"]["end_of_word_suffix"] = "</w>"
    with pytest.raises(RecipeError, match="ends of words"):
        token_bytes(tokens.Tokenizer(json.dumps(content), 0))


# --- one family


def shuffled(made, extra=0):
    """The same tokens under other numbers, with holes behind."""
    content = json.loads(made.text)
    vocabulary = content["model"]["vocab"]
    numbers = np.random.default_rng(0).permutation(len(vocabulary) + extra)
    moved = {token: int(numbers[number]) for token, number in vocabulary.items()}
    content["model"]["vocab"] = moved
    for one in content["added_tokens"]:
        one["id"] = moved[one["content"]]
    tokens._renumber(content["post_processor"], moved)
    return tokens.Tokenizer(json.dumps(content), moved["[PAD]"]), numbers


@pytest.mark.parametrize("made", [bytelevel(400), bytelevel(400, lowercase=True), WORDS, PIECES, tokens.train("words", TEXTS, 40)],
                         ids=["bpe", "lower", "wordpiece", "sentencepiece", "words"])
@pytest.mark.parametrize("extra", [0, 9])
def test_the_same_tokens_in_another_order_are_only_reordered(made, extra):
    """Prevents: a teacher of the same family with a padded vocabulary needs a flag, or loses something."""
    other, numbers = shuffled(made, extra)
    translation = align(made, other)
    assert translation.exact and translation.dropped_tokens == 0 and translation.coverage == 1
    for text in ["the cats, playing on", "", "Été 你 zz"]:
        where = places(translation, text)
        assert where.student.tolist() == where.teacher.tolist() == list(range(len(ids(made, text)) - 1))
        assert where.share == 1 and not where.depth.any() or "zz" in text
        teacher = logits(len(where.teacher_next), made.size + 64)  # wider than the vocabulary, as models pad their heads
        teacher[:, made.size:] = 1000.0
        rows, dropped = translation.rows(teacher, where, keep=other.size)
        found, tail = dense(rows, other.size)
        expected = torch.zeros(len(found), other.size)
        expected[:, torch.from_numpy(numbers[: made.size])] = torch.softmax(teacher[:-1, : made.size], 1)
        assert torch.allclose(found, expected, atol=1e-6) and tail.max() < 1e-6 and dropped.max() < 1e-6


def test_equal_tokens_with_other_merges_are_not_taken_for_one_family():
    assert align(letters([("a", "b"), ("b", "c")]), letters([("b", "c"), ("a", "b")])).exact is False


def test_special_tokens_meet_by_role_or_as_said():
    content = bytelevel(400).text.replace("[SEP]", "</s>").replace("[CLS]", "<s>").replace("[MASK]", "<who>")
    other, made = tokens.Tokenizer(content, 0), bytelevel(500)
    found = align(made, other).tables.ids[0, :5, 0].tolist()
    assert found == [0, 1, 2, 3, -1], "padding, start and end by role, [UNK] by name; nobody has that mask"
    assert align(made, other, special={4: 4}).tables.ids[0, 4, 0] == 4


# --- where the two meet


def test_the_end_is_aligned_and_cut_texts_and_padding_are_taken():
    one, other = bytelevel(261), bytelevel(400)
    translation = align(one, other)
    text = "playing with the cats"
    full = places(translation, text)
    assert full.student_next[-1] == 3 and full.teacher_next[full.teacher[-1]] == 3
    padded = translation.places(text, ids(one, text) + [0] * 3, ids(other, text) + [0] * 5)
    assert padded.student.tolist() == full.student.tolist() and padded.lengths == (full.lengths[0] + 5, full.lengths[1] + 3)
    cut = translation.places(text, ids(one, text)[:9], ids(other, text))
    assert cut.student.tolist() == full.student[: len(cut.student)].tolist() and 0 < len(cut.student) < len(full.student)
    assert cut.share < full.share


@pytest.mark.parametrize("student", [bytelevel(400), bytelevel(400, OTHER)], ids=["same text", "other text"])
def test_a_teacher_of_bytes_meets_every_student_token(student):
    translation = align(bytelevel(261), student)
    for text in [*TEXTS, *OTHER, "unseen: ñ 猫"]:
        where = places(translation, text)
        own = ids(student, text)
        assert where.student.tolist() == list(range(len(own) - 1)) and where.share == 1 and not where.depth.any()
        spelt = token_bytes(student)
        sizes = [max(len(spelt[number] or b""), 1) for number in own[1:]]
        assert where.spans.tolist() == sizes and where.whole.all()
        assert where.teacher.tolist() == np.cumsum([0, *sizes[:-1]]).tolist()


def test_a_student_of_bytes_finds_itself_in_every_teacher_token():
    teacher, student = bytelevel(400), bytelevel(261)
    translation = align(teacher, student)
    for text in [*TEXTS, "unseen: ñ 猫"]:
        where = places(translation, text)
        spelt = token_bytes(teacher)
        sizes = [max(len(spelt[number] or b""), 1) for number in ids(teacher, text)[1:]]
        assert where.share == 1 and where.student.tolist() == list(range(len(ids(student, text)) - 1))
        assert where.teacher.tolist() == np.repeat(np.arange(len(sizes)), sizes).tolist()
        assert where.depth.tolist() == [number for size in sizes for number in range(size)]


def test_positions_predict_the_same_bytes():
    """The bytes in front of a student's position are those in front of the teacher's, and at most the part of its token that is said."""
    teacher, student = bytelevel(420), bytelevel(330, OTHER)
    translation = align(teacher, student)
    for text in [*TEXTS, *OTHER]:
        theirs, ours = ids(teacher, text), ids(student, text)
        where = translation.places(text, theirs, ours)
        for at, there, depth in zip(where.student, where.teacher, where.depth, strict=True):
            said = b"".join(translation.student_bytes[number] or b"" for number in ours[: at + 1])
            known = b"".join(translation.teacher_bytes[number] or b"" for number in theirs[: there + 1])
            following = translation.teacher_bytes[theirs[there + 1]]
            assert said == known if depth == 0 else said.startswith(known) and following.startswith(said[len(known):])
        got = translation.positions(text, theirs, ours)
        assert [one.tolist() for one in got] == [where.student.tolist(), where.teacher.tolist()]


def test_sampled_tokens_need_not_be_those_of_the_tokenizer():
    """A student's own writing is cut otherwise than its tokenizer would."""
    teacher, student = bytelevel(400), bytelevel(400, OTHER)
    translation = align(teacher, student)
    text = "playing"
    number = {part: number for number, part in enumerate(translation.student_bytes) if part is not None}
    spelt = [2, *(number[bytes([byte])] for byte in text.encode())]
    assert len(translation.places(text, ids(teacher, text), spelt).student) >= 1
    with pytest.raises(DataError, match="don't belong together"):
        align(bytelevel(400, lowercase=True), student).places("Playing", ids(teacher, "Cats"), spelt)
    with pytest.raises(DataError, match="cut packed rows"):
        translation.places("ab", [2, *ids(teacher, "a")[1:], *ids(teacher, "b")], spelt)


def test_white_space_that_is_dropped_belongs_to_the_word_behind_it():
    teacher = bytelevel(400)
    translation = align(teacher, WORDS)
    text = "the cat  (playing)"
    where = places(translation, text)
    name = WORDS.inner.id_to_token
    assert [name(number) for number in where.student_next] == ["the", "cat", "(", "play", "##ing", ")", "[SEP]"]
    assert where.share == 1
    becomes = {part: translation.tables.ids[translation.contexts, number, 0].tolist()
               for number, part in enumerate(translation.teacher_bytes) if part in (b" the", b"the", b"ing", b"\n", b" ")}
    number = WORDS.inner.token_to_id
    assert becomes[b" the"] == [number("the")] * 3
    assert becomes[b"the"] == [number("the"), number("##t"), number("the")], "inside a word it goes on with it, by letters here"
    assert becomes[b"ing"] == [number("i"), number("##ing"), number("i")]
    assert becomes[b"\n"] == becomes[b" "] == [-1, -1, -1]


def test_a_teacher_that_drops_white_space_says_words_behind_spaces():
    student = bytelevel(400)
    where = places(translation := align(WORDS, student), "the cat, playing on")
    spelt = [translation.student_bytes[number] for number in where.student_next]
    assert spelt[:2] == [b"the", b" cat"] and where.share == 1
    inside = places(translation, "(the")
    assert inside.share < 1, "behind a sign it would have said that there is a space"
    sample = align(WORDS, student, ["(the cat) (the cat)"] * 30)
    assert places(sample, "(the").share == 1, "which texts without one correct"


def test_capitals_that_a_teacher_does_not_know_do_not_count_unless_texts_show_them():
    teacher, student = bytelevel(500, lowercase=True), bytelevel(400, ["on The Mat", "on the mat"] * 9)
    text = "on The Mat"
    capitals = places(align(teacher, student), text)
    assert capitals.share < 1
    same = places(align(teacher, bytelevel(400, OTHER, lowercase=True)), text)
    assert same.share == 1, "two that both do not know them agree"
    shown = align(teacher, student, ["on The Mat", "on the mat"] * 20)
    assert places(shown, text).share > capitals.share


def test_letters_cut_within_and_signs_in_front_of_the_text():
    """Byte fallback against bytes: a letter of several tokens on both sides; and SentencePiece's space before the first word."""
    for teacher, student in [(PIECES, bytelevel(400)), (bytelevel(261), PIECES), (PIECES, bytelevel(261))]:
        translation = align(teacher, student)
        where = places(translation, "the é 猫 cat")
        spelt = [translation.student_bytes[number] for number in where.student_next]
        if student is PIECES:
            assert b"\xe7" in spelt and b"\xa9" in spelt, "each byte of a letter"
        assert where.share > 0.7
        assert places(translation, "").student_next.tolist() == [3], "of no text, the end"


def test_what_is_unknown_to_one_of_them_is_not_aligned_and_the_rest_is():
    words = tokens.train("words", ["the cat sat", "a cat"], 40)
    translation = align(bytelevel(400), words)
    where = places(translation, "the zebra sat")
    assert where.student_next.tolist() == [words.inner.token_to_id(name) for name in ("the", "sat", "[SEP]")]
    assert where.share == pytest.approx(7 / 13)
    teacher = logits(len(where.teacher_next), 400)
    found, dropped = translation.rows(teacher, where, keep=40)
    assert dropped.min() > 0.1 and dropped.max() <= 1, "most of the bytes' tokens are no word"


def test_texts_are_joined_one_behind_the_other():
    translation = align(bytelevel(400), bytelevel(330, OTHER))
    parts = [places(translation, text) for text in TEXTS[:4]]
    whole = joined(parts)
    teacher = logits(len(whole.teacher_next), 400)
    rows, dropped = translation.rows(teacher, whole, keep=330)
    at = 0
    for part in parts:
        count, length = len(part.student), part.lengths[1]
        alone, lost = translation.rows(teacher[:length], part, keep=330)
        teacher = teacher[length:]
        got = dense(TopKRows(rows.ids[at : at + count], rows.logits[at : at + count], *(
            {1.0: values[1.0][at : at + count]} for values in (rows.log_sum_exp, rows.tail_log_mass))), 330)
        assert torch.allclose(got[0], dense(alone, 330)[0], atol=1e-5) and torch.allclose(dropped[at : at + count], lost, atol=1e-6)
        at += count
    assert whole.lengths == tuple(np.sum([part.lengths for part in parts], axis=0)) and at == len(whole.student)
    with pytest.raises(DataError, match="nothing to join"):
        joined([])


# --- the rows


def slow_row(translation: Translation, probs, where, number):
    """One row by the words of the module's head, without any table: {student token: mass}, and the dropped mass."""
    tables, at = translation.tables, int(where.teacher[number])
    context, depth, spans = int(where.context[number]), int(where.depth[number]), int(where.spans[number])
    theirs, ours = int(where.teacher_next[at]), int(where.student_next[number])
    path = [tables.paths[context, token].tolist() for token in range(probs.shape[1])]
    possible = [
        token for token in range(probs.shape[1])
        if depth == 0 or path[token][:depth] == path[theirs][:depth] and path[token][depth] >= 0
    ]
    total = sum(probs[at, token] for token in possible) if depth else 1.0
    mass, dropped = defaultdict(float), 0.0
    for token in possible:
        split = zip(tables.ids[context, token].tolist(), tables.shares[context, token].tolist(), strict=True)
        shares = {path[token][depth]: 1.0} if depth else {one: share for one, share in split if share > 0}
        weight = probs[at, token] / total
        if token == theirs and spans > 1:
            chain = math.prod(probs[at + step, where.teacher_next[at + step]] for step in range(spans)) / total
            chain *= float(tables.stays[ours]) if where.whole[number] else 1.0
            mass[ours] += chain
            weight -= chain
            left = {one: share for one, share in shares.items() if not (one == ours and where.whole[number])} or shares
            shares = {one: share / sum(left.values()) for one, share in left.items()}
        for one, share in shares.items():
            mass[one] += weight * share
        dropped += 0.0 if shares else weight
    return mass, dropped


PAIRS = {
    "merged to bytes": (bytelevel(400), bytelevel(261)), "bytes to merged": (bytelevel(261), bytelevel(400)),
    "other text": (bytelevel(420), bytelevel(330, OTHER)), "to wordpiece": (bytelevel(400), WORDS), "of wordpiece": (WORDS, bytelevel(400)),
    "to sentencepiece": (bytelevel(400), PIECES), "of sentencepiece": (PIECES, bytelevel(400)),
    "lower": (bytelevel(400, lowercase=True), bytelevel(420, OTHER, lowercase=True)),
}


@pytest.mark.parametrize("sample", [(), TEXTS], ids=["spelling", "sample"])
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_rows_are_those_of_the_slow_twin_and_lose_no_mass(pair, sample, temperature):
    teacher, student = PAIRS[pair]
    translation = align(teacher, student, sample)
    where = joined([places(translation, text) for text in ("playing, (the été)", "they sat on 猫 mats")])
    said = logits(len(where.teacher_next), teacher.size)
    rows, dropped = translation.rows(said, where, temperature=temperature, keep=student.size)
    found, tail = dense(rows, student.size, temperature)
    assert torch.allclose(found.sum(1) + tail, torch.ones(len(found)), atol=1e-5)
    assert len(found) == len(where.student) > 10
    assert (where.spans > 1).any() or pair not in ("bytes to merged", "of wordpiece", "to wordpiece")
    probs = torch.softmax(said.double() / temperature, 1).numpy()
    for number, row in enumerate(found):
        mass, lost = slow_row(translation, probs, where, number)
        assert sum(mass.values()) + lost == pytest.approx(1, abs=1e-6)
        assert float(dropped[number]) == pytest.approx(lost, abs=1e-5)
        expected = torch.zeros(student.size)
        expected[list(mass)] = torch.tensor(list(mass.values()), dtype=torch.float32)
        share = lost / max(student.size - int((expected > 0).sum()), 1)  # entries that fill the row up
        assert torch.allclose(row, torch.where(expected > 0, expected, share if rows.ids.shape[1] == student.size else row), atol=1e-5)
    kept, lost = translation.rows(stored(said, teacher.size, temperature), where, temperature=temperature, keep=student.size)
    again, tail = dense(kept, student.size, temperature)
    spread = 1e-5 + dropped[:, None] / 2  # which of the two paths fills rows up how far is its own affair
    assert ((again - found).abs() <= spread).all() and torch.allclose(lost, dropped, atol=1e-5)


@pytest.mark.parametrize("pair", PAIRS)
def test_stored_rows_are_lower_bounds_and_the_tail_holds_the_rest(pair):
    teacher, student = PAIRS[pair]
    translation = align(teacher, student, TEXTS)
    where = places(translation, "playing, (the été) on mats")
    said = 2 * logits(len(where.teacher_next), teacher.size)
    said[torch.arange(len(said)), torch.from_numpy(where.teacher_next)] = said.amax(1) - 0.5  # the text's own tokens are kept
    full, _ = dense(translation.rows(said, where, keep=student.size)[0], student.size)
    rows, dropped = translation.rows(stored(said, 16), where, keep=12)
    found, tail = dense(rows, student.size)
    assert rows.ids.shape[1] <= 12 and torch.allclose(found.sum(1) + tail, torch.ones(len(found)), atol=1e-5)
    filled = found <= tail[:, None] + 1e-6
    assert ((found <= full + 1e-5) | filled).all() and (found > 0.3).any()
    assert (rows.logits[:, 1:] <= rows.logits[:, :-1] + 1e-6).all(), "largest first"


def test_a_row_that_the_store_says_nothing_about_is_marked():
    """Prevents: 64 arbitrary tokens are taught to be impossible where none of the kept entries is possible."""
    teacher, student = bytelevel(400), bytelevel(261)
    translation = align(teacher, student)
    where = places(translation, "playing")
    said = logits(len(where.teacher_next), 400)
    said[:, :] -= 50.0 * torch.from_numpy(np.isin(np.arange(400), where.teacher_next)).float()  # the text's own tokens are not kept
    _, dropped = translation.rows(stored(said, 3), where)
    assert (dropped[torch.from_numpy(where.depth) > 0] == 1).any() and (dropped[torch.from_numpy(where.depth) == 0] < 1).all()


def test_rows_of_other_texts_or_temperatures_are_refused():
    translation = align(bytelevel(400), bytelevel(261))
    where = places(translation, "playing")
    said = logits(len(where.teacher_next), 400)
    with pytest.raises(DataError, match="don't fit the places"):
        translation.rows(said[1:], where)
    with pytest.raises(DataError, match=r"stored for temperatures \[1.0\]"):
        translation.rows(stored(said, 5), where, temperature=2.0)


# --- against a language that can be counted out


class Language:
    """All words of `length` letters, each with its probability; and what models of any tokenizer of it would say, exactly."""

    def __init__(self, letters=None, length=4):
        self.texts = ["".join(word) for word in itertools.product("abc", repeat=length)]
        chances = np.random.default_rng(0).gamma(0.3, size=len(self.texts))
        if letters:  # one independent of the other
            chances = np.array([math.prod(letters["abc".index(sign)] for sign in text) for text in self.texts])
        self.chances = chances / chances.sum()

    def model(self, tokenizer):
        """{ids so far: (V,) probabilities of the next token} of texts as this tokenizer cuts them."""
        found = defaultdict(lambda: np.zeros(tokenizer.size))
        for text, chance in zip(self.texts, self.chances, strict=True):
            row = ids(tokenizer, text)
            for at in range(1, len(row)):
                found[tuple(row[:at])][row[at]] += chance
        return {prefix: mass / mass.sum() for prefix, mass in found.items()}

    def taught(self, translation):
        """{student's ids so far: mean of the translated rows over all texts}, and the rows themselves with their places."""
        teacher, student = (side.tokenizer for side in (translation.teacher, translation.student))
        model, mean, every = self.model(teacher), defaultdict(lambda: np.zeros(student.size)), []
        weight = defaultdict(float)
        for text, chance in zip(self.texts, self.chances, strict=True):
            theirs, ours = ids(teacher, text), ids(student, text)
            where = translation.places(text, theirs, ours)
            assert where.share == 1 and len(where.student) == len(ours) - 1
            said = np.stack([model.get(tuple(theirs[: at + 1]), np.ones(teacher.size) / teacher.size) for at in range(len(theirs))])
            rows, dropped = translation.rows(torch.from_numpy(said).clamp(min=1e-37).log(), where, keep=student.size)
            assert dropped.max() < 1e-5
            found = dense(rows, student.size)[0].numpy()
            for number, at in enumerate(where.student):
                mean[tuple(ours[: at + 1])] += chance * found[number]
                weight[tuple(ours[: at + 1])] += chance
                every.append((tuple(ours[: at + 1]), ours[at + 1], int(where.spans[number]), found[number]))
        return {prefix: total / weight[prefix] for prefix, total in mean.items()}, every


def test_larger_tokens_of_the_teacher_are_taught_exactly():
    """On average over the texts that go on a prefix, the rows are the student's true distribution, also within the teacher's tokens."""
    language = Language()
    teacher, student = letters([("a", "b"), ("ab", "c"), ("c", "c"), ("b", "a")]), letters([])
    taught, _ = language.taught(align(teacher, student))
    truth = language.model(student)
    assert taught.keys() == truth.keys()
    assert max(np.abs(taught[prefix] - truth[prefix]).max() for prefix in truth) < 1e-5


def test_larger_tokens_of_the_student_that_the_text_holds_are_taught_exactly():
    language = Language()
    teacher, student = letters([]), letters([("a", "b"), ("ab", "c")])
    translation = align(teacher, student)
    _, every = language.taught(translation)
    chance = dict(zip(language.texts, language.chances, strict=True))
    spelt, chains = token_bytes(student), 0
    for prefix, token, spans, row in every:
        if spans > 1:
            said = b"".join(spelt[number] or b"" for number in prefix).decode()
            goes_on = sum(value for text, value in chance.items() if text.startswith(said + spelt[token].decode()))
            stays = sum(value for text, value in chance.items() if text.startswith(said))
            assert row[token] == pytest.approx(goes_on / stays, abs=1e-5)
            chains += 1
    assert chains > 20


def test_a_sample_of_texts_takes_the_bias_towards_short_tokens_away():
    """Prevents: a student with longer tokens than its teacher's learns to spell words letter by letter."""
    language = Language([0.5, 0.3, 0.2])
    teacher, student = letters([]), letters([("a", "b"), ("ab", "c"), ("c", "a")])
    truth = language.model(student)[(2,)]
    sample = [text for text, chance in zip(language.texts, language.chances, strict=True) for _ in range(round(800 * chance))]
    error = [
        0.5 * np.abs(language.taught(align(teacher, student, texts))[0][(2,)] - truth).sum() for texts in ((), sample)
    ]
    assert error[1] < 0.25 * error[0], error


# --- ULD


def test_uld_is_the_distance_of_sorted_rows():
    p = torch.log_softmax(torch.randn(5, 7, dtype=torch.float64), -1)
    q = torch.log_softmax(torch.randn(5, 11, dtype=torch.float64), -1)
    slow = [sum(abs(a - b) for a, b in itertools.zip_longest(sorted(x.exp().tolist(), reverse=True), sorted(y.exp().tolist(), reverse=True),
                                                            fillvalue=0.0)) for x, y in zip(p, q, strict=True)]
    assert uld(p, q).tolist() == pytest.approx(slow) == uld(q, p).tolist()
    assert uld(p, p[:, torch.randperm(7)]).abs().max() < 1e-12, "which token it is plays no part"
    ordered = [row.sort(descending=True).values for row in (p, torch.log_softmax(torch.randn(5, 7, dtype=torch.float64), -1))]
    assert torch.allclose(uld(*ordered), 2 * divergence.total_variation(*ordered))
    assert uld(torch.tensor([1.0, 1e-9]).log(), torch.tensor([1e-3] * 1000).log()).item() == pytest.approx(2 * (1 - 1e-3), abs=1e-4)
    logits = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: uld(torch.log_softmax(z, -1), q[:2]), (logits,))
    with pytest.raises(DataError, match="differ in number"):
        uld(p, q[:3])


# --- the whole


@pytest.mark.slow
def test_a_student_with_other_tokens_learns_more_from_aligned_rows_than_from_uld(data_folder):
    """Teacher: a table of pairs over 500 tokens, from much text. Student: a table over 300 tokens of other text, from little text."""
    read = {name: gzip.decompress((data_folder / name / file).read_bytes()).decode() for name, file in (
        ("wikitext2_valid", "valid.txt.gz"), ("tinyshakespeare", "input.txt.gz"))}
    texts = [line[:400] for line in read["wikitext2_valid"].split("\n") if len(line) > 200]
    texts, little, unseen = texts[60:], texts[60:90], texts[:60]
    teachers, students = bytelevel(500, texts), bytelevel(300, read["tinyshakespeare"].split("\n\n"))
    pairs = torch.zeros(teachers.size, teachers.size)
    for text in texts:
        row = torch.tensor(ids(teachers, text))
        pairs.index_put_((row[:-1], row[1:]), torch.ones(len(row) - 1), accumulate=True)
    single = pairs.sum(0) + 0.1
    teacher = ((pairs + 20 * single / single.sum()) / (pairs.sum(1, keepdim=True) + 20)).log()
    translation = align(teachers, students, little)
    where = joined([places(translation, text) for text in little])
    assert where.share > 0.9
    said = teacher[torch.cat([torch.tensor(ids(teachers, text)) for text in little])]
    rows, dropped = translation.rows(said, where, keep=128)
    assert dropped.mean() < 0.01
    inputs = torch.cat([torch.tensor(ids(students, text)) for text in little])[torch.from_numpy(where.student)]
    labels, theirs = torch.from_numpy(where.student_next), torch.from_numpy(where.teacher)

    def bits(way):
        torch.manual_seed(0)
        table = torch.zeros(students.size, students.size, requires_grad=True)
        optimizer = torch.optim.Adam([table], lr=0.3)
        for step in range(60):
            optimizer.param_groups[0]["lr"] = 0.3 * (1 - step / 60) + 1e-3
            some = torch.randint(len(inputs), (256,))
            log_probs = torch.log_softmax(table[inputs[some]], 1)
            loss = torch.nn.functional.nll_loss(log_probs, labels[some])
            if way == "uld":
                loss = loss + 0.5 * uld(log_probs, said[theirs[some]]).mean()
            if way == "aligned":
                kept = rows.logits[some] - rows.log_sum_exp[1.0][some, None]
                taught = divergence.forward_kl_topk(log_probs, rows.ids[some], kept, rows.tail_log_mass[1.0][some]).mean()
                loss = 0.1 * loss + 0.9 * taught
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        log_probs = torch.log_softmax(table.detach(), 1)
        total = sum(-float(log_probs[row[:-1], row[1:]].sum()) for row in (torch.tensor(ids(students, text)) for text in unseen))
        return total / math.log(2) / sum(len(text.encode()) for text in unseen)

    found = {way: bits(way) for way in ("labels", "uld", "aligned")}
    assert found["aligned"] < min(found["labels"], found["uld"]) - 0.1, found


def test_the_module_names_what_it_offers():
    assert {"align", "token_bytes", "uld"} <= set(alignment.__all__)
