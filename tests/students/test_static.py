"""A static embedding is the teacher's view of each token, turned, cut and weighted; tuning brings it nearer to the teacher."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from understudy.errors import DataError, RecipeError
from understudy.static_embedding import load
from understudy.students import sentences, static, static_tokens, static_tuning
from understudy.tokens import Tokenizer

transformers = pytest.importorskip("transformers", reason="needs the transformers package")
TEXTS = ["turn on the light", "turn off the music", "play music", "send money to the bank", "the weather is rain", "stop playing",
         "unknown rain", "lighting on", "banking", "the bank stopped the money"] * 4  # fmt: skip


@pytest.fixture(scope="module")
def folder(folders, tmp_path_factory):
    return folders.encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def made(folder):
    return static.distil(folder, dimensions=6)


def teacher_alone(folder, ids: list[int]) -> torch.Tensor:
    """(L, H): one row through the library, without a batch or a mask."""
    model = transformers.AutoModel.from_pretrained(folder, dtype="float32").eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).last_hidden_state[0]


@pytest.mark.parametrize("share", [np.full(30, 1 / 30), np.random.default_rng(5).random(30)])
def test_pca_is_the_singular_value_decomposition(share):
    """Of the centred rows, each times the square root of its share: numpy's SVD is the slow twin."""
    rows = np.random.default_rng(0).normal(size=(30, 7)) * np.arange(1, 8) + 3
    mean, components = static.pca(rows, 4, share)
    weight = share / share.sum()
    np.testing.assert_allclose(mean, (weight[:, None] * rows).sum(0), rtol=1e-12)
    _, _, right = np.linalg.svd((rows - mean) * np.sqrt(weight)[:, None], full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(components * right[:4].T, axis=0)), 1, atol=1e-10)  # the same lines
    np.testing.assert_allclose(components.T @ components, np.eye(4), atol=1e-10)
    assert (components[np.abs(components).argmax(0), np.arange(4)] > 0).all()


def test_a_share_is_a_number_of_copies():
    """A row with share 3 counts as three rows; a row with share 0 does not count."""
    rows = np.random.default_rng(1).normal(size=(6, 3))
    copies = np.array([3, 1, 0, 2, 1, 1])
    first, second = static.pca(rows, 3, copies), static.pca(np.repeat(rows, copies, axis=0), 3, np.ones(8))
    np.testing.assert_allclose(first[0], second[0], atol=1e-12)
    np.testing.assert_allclose(first[1], second[1], atol=1e-9)


def test_weights_by_hand():
    np.testing.assert_allclose(static.weights(np.array([0.0, 1e-3, 3e-3]), 1e-3), [1, 0.5, 0.25])
    assert static.weights(np.array([0.2, 0.8]), None).tolist() == [1, 1]
    with pytest.raises(RecipeError, match="sif must be positive"):
        static.weights(np.ones(2), 0.0)


def test_shares_by_hand(folder):
    """Zipf's over the known tokens in the order of their ids; a Unigram tokenizer's own; and counts, plus one each."""
    import tokenizers

    tokenizer, _ = static_tokens.bare(static_tokens.tokenizer_of(folder))
    known = np.array([False, True, True, False, True])
    np.testing.assert_allclose(static_tokens.expected(tokenizer, known), np.array([0, 1 / 2, 1 / 3, 0, 1 / 4]) / (13 / 12))

    unigram = tokenizers.Tokenizer(tokenizers.models.Unigram([("<unk>", 0.0), ("a", np.log(0.75)), ("b", np.log(0.25))], unk_id=0))
    unigram = Tokenizer(unigram.to_str(), 0)
    np.testing.assert_allclose(static_tokens.expected(unigram, np.array([False, True, True])), [0, 0.75, 0.25])
    np.testing.assert_allclose(static_tokens.counted(unigram, np.array([False, True, True]), ["aab", "a"]), [0, 4 / 6, 2 / 6])


@pytest.mark.parametrize("pooling", ["first", "token", "mean"])
def test_a_row_is_the_teachers_state_of_the_token_alone(folder, pooling):
    """Whole chain by hand for one token: state, mean, components, weight."""
    made = static.distil(folder, dimensions=6, pooling=pooling, sif=0.01)
    source, tokenizer = static_tokens.tokenizer_of(folder), made.model.tokenizer
    states = teacher_alone(folder, [2, source.inner.token_to_id("music"), 3]).double().numpy()
    state = {"first": states[0], "token": states[1], "mean": states.mean(0)}[pooling]
    at, names = tokenizer.inner.token_to_id("music"), tokenizer.inner.get_vocab_size()
    zipf = 1 / np.arange(2, names + 1)  # one token is [UNK]
    rank = at  # [UNK] stands first
    want = (state - made.mean) @ made.components * (0.01 / (0.01 + zipf[rank - 1] / zipf.sum()))
    np.testing.assert_allclose(made.model.table[at], want, atol=1e-5)  # float32 states, whatever the batch


def test_special_tokens_are_gone(folder, made):
    """Prevents: "[SEP]" in a text, or the marks around every text, become part of its vector."""
    inner = made.model.tokenizer.inner
    assert all(inner.token_to_id(name) is None for name in ("[PAD]", "[CLS]", "[SEP]", "[MASK]"))
    assert inner.padding is None and inner.truncation is None and inner.encode("play").tokens == ["play"]
    assert not made.model.table[inner.token_to_id("[UNK]")].any()
    assert (np.abs(made.model.table).sum(1) > 0).sum() == len(made.model.table) - 1
    assert len(made.model.encode(["play " * 40])) == 1  # longer than the folder's truncation


def test_the_same_folder_gives_the_same_table(folder, made):
    again = static.distil(folder, dimensions=6, batch=7)
    np.testing.assert_allclose(again.model.table, made.model.table, atol=1e-5)
    np.testing.assert_array_equal(static.distil(folder, dimensions=6).model.table, made.model.table)


def test_all_dimensions_keep_all_cosines(folder):
    """PCA with every component and no weights is a rotation of the centred states."""
    made = static.distil(folder, dimensions=16, sif=None)
    tokenizer, pieces = static_tokens.bare(static_tokens.tokenizer_of(folder))
    states = sentences.single_states(sentences.teacher(folder), static_tokens.tokenizer_of(folder), pieces, "first")
    known = np.array([bool(one) for one in pieces])
    centred = (states - made.mean)[known]
    np.testing.assert_allclose(made.model.table[known] @ made.model.table[known].T, centred @ centred.T, atol=1e-4)


def test_counts_replace_ranks(folder, made):
    """With texts, a token that they repeat is weighed down against one that they lack."""
    counted = static.distil(folder, dimensions=6, texts=["music"] * 500, sif=0.01)
    inner = made.model.tokenizer.inner
    music, money = inner.token_to_id("music"), inner.token_to_id("money")
    share = static_tokens.counted(made.model.tokenizer, np.arange(len(made.model.table)) > 0, ["music"] * 500)
    ratio = static.weights(share, 0.01)
    assert ratio[music] < 0.1 * ratio[money] and counted.model.about["counted"]
    weighted = np.linalg.norm(counted.model.table, axis=1) / np.maximum(ratio, 1e-12)
    assert np.median(weighted[1:]) > 10 * np.linalg.norm(counted.model.table[music])


def test_words_become_tokens(folder):
    words = static_tokens.frequent_words(static_tokens.tokenizer_of(folder), ["zoo zoo, Zebra zebra zebra play a1"] * 3, most=5, at_least=3)
    assert words == ["zebra", "zoo"]  # play is one already, a1 is no word
    made = static.distil(folder, dimensions=6, words=words, sif=None)
    assert made.model.tokenizer.inner.encode("Zebra playing").tokens == ["zebra", "play", "##ing"]
    source = static_tokens.tokenizer_of(folder)
    states = teacher_alone(folder, source.inner.encode("zebra").ids[:7]).double().numpy()
    at = made.model.tokenizer.inner.token_to_id("zebra")
    np.testing.assert_allclose(made.model.table[at], (states[0] - made.mean) @ made.components, atol=1e-5)


def test_a_byte_tokenizer_keeps_its_ids_and_needs_no_padding(folder, tmp_path):
    """An encoder with a BPE without a padding token and without marks around a text; its end-of-text token gets zeros."""
    import tokenizers

    one = tokenizers.Tokenizer(tokenizers.models.BPE())
    one.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<end>"], show_progress=False)
    one.train_from_iterator(TEXTS, trainer)
    one.save(str(tmp_path / "tokenizer.json"))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    made = static.distil(tmp_path, dimensions=5)
    assert len(made.model.table) == one.get_vocab_size() and not made.model.table[one.token_to_id("<end>")].any()
    ids = one.encode("play music").ids
    np.testing.assert_allclose(made.model.encode(["play music"], normalise=False)[0], made.model.table[ids].mean(0), atol=1e-6)
    assert np.isfinite(sentences.vectors(tmp_path, ["play", "play music now"])).all()
    with pytest.raises(RecipeError, match="words can't be added"):
        static.distil(tmp_path, dimensions=5, words=["zebra"])


def test_numpy_and_torch_agree_on_a_saved_folder(made, tmp_path):
    """The shipped model, read by numpy alone, is the mean of an EmbeddingBag over the tokens."""
    model = load(made.model.save(tmp_path / "made"))
    bag = torch.nn.EmbeddingBag.from_pretrained(torch.from_numpy(made.model.table), mode="mean")
    want = torch.nn.functional.normalize(torch.stack(
        [bag(torch.tensor([made.model.tokenizer.inner.encode(text).ids]))[0] for text in TEXTS[:10]]), dim=1)
    np.testing.assert_allclose(model.encode(TEXTS[:10]), want.numpy(), atol=1e-6)


def test_the_teachers_vectors_are_masked_means(folder, tmp_path):
    """Padding in a batch changes nothing; a folder that says cls gets the first state."""
    texts = ["play", "turn on the light", "stop the music"]
    found = sentences.vectors(folder, texts, batch=2)
    source = static_tokens.tokenizer_of(folder)
    alone = [teacher_alone(folder, source.inner.encode(text).ids) for text in texts]
    np.testing.assert_allclose(found, np.stack([one.mean(0).numpy() for one in alone]), atol=1e-5)
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "1_Pooling").mkdir()
    for said in ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, {"pooling_mode": "cls"}):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(said))
        np.testing.assert_allclose(sentences.vectors(tmp_path, texts), np.stack([one[0].numpy() for one in alone]), atol=1e-5)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    with pytest.raises(DataError, match="pooling .* is not known"):
        sentences.vectors(tmp_path, texts)


def test_the_loss_is_the_cosine_by_hand():
    """Two texts, in float64, against numpy; and its gradient against finite differences."""
    bags = static_tuning.Bags(np.array([0, 1, 1, 2]), np.array([2, 0, 2]))
    draw = np.random.default_rng(2)
    table, weight = torch.tensor(draw.normal(size=(3, 4)), requires_grad=True), torch.tensor(draw.normal(size=3), requires_grad=True)
    goal = torch.nn.functional.normalize(torch.tensor(draw.normal(size=(3, 4))), dim=1)
    rows = np.array([2, 0])
    found = static_tuning.cosine_loss(table, weight, bags, goal, rows)
    scaled = (table * weight.exp()[:, None]).detach().numpy()
    for value, ids, at in zip(found.tolist(), ([1, 2], [0, 1]), rows, strict=True):
        total = scaled[ids].sum(0)
        assert value == pytest.approx(1 - total @ goal[at].numpy() / np.linalg.norm(total), abs=1e-12)
    assert torch.autograd.gradcheck(lambda t, w: static_tuning.cosine_loss(t, w, bags, goal, rows), (table, weight))


def test_tuning_learns_what_a_table_can_know(folder, made):
    """The targets are means of another table's rows, so that a table can reach them; held-out texts come nearer as well."""
    draw = np.random.default_rng(3)
    texts = [" ".join(draw.choice(["play", "music", "the", "rain", "bank", "money", "light"], 4)) for _ in range(400)]
    other = draw.normal(size=(len(made.model.table), 6)).astype(np.float32)
    ids, counts = made.model.tokens(texts)
    means = np.array([other[part].mean(0) for part in np.split(ids, np.cumsum(counts)[:-1])])
    tuned = static_tuning.tune(made, texts, means @ made.components.T.astype(np.float32), epochs=20, lr=0.02, batch=32)
    assert tuned.held_out[-1] < 0.1 * tuned.held_out[0]
    untouched = made.model.tokenizer.inner.token_to_id("weather")
    ratio = tuned.static.model.table[untouched] / made.model.table[untouched]
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)  # what no text holds keeps its direction
    assert made.model.about.get("tuned_on") is None and tuned.static.model.about["tuned_on"] == 360


def test_tuning_is_seeded(folder, made):
    targets = sentences.vectors(folder, TEXTS)
    first, second, other = (static_tuning.tune(made, TEXTS, targets, epochs=2, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.static.model.table, second.static.model.table)
    assert not np.array_equal(first.static.model.table, other.static.model.table)
    assert first.held_out == second.held_out and len(first.held_out) == 3


def test_tuning_that_does_not_help_is_not_taken(folder, made):
    """Targets that the table meets already, and steps so large that they destroy it."""
    texts = list(dict.fromkeys(TEXTS)) * 4
    rows = made.model.encode(texts)
    targets = (rows - rows.mean(0)) @ made.components.T
    worse = static_tuning.tune(made, texts, targets, epochs=2, lr=30.0, weight_lr=0.0)
    assert min(worse.held_out[1:]) > worse.held_out[0]
    np.testing.assert_allclose(worse.static.model.encode(texts), rows, atol=1e-5)


def test_salads_hold_every_word(made):
    texts = static_tuning.salads(made, passes=2, length=8)
    tokens = len(made.model.table) - 1  # without [UNK]
    again, other = static_tuning.salads(made, passes=2, length=8), static_tuning.salads(made, seed=1)
    assert len(texts) == 2 * -(-tokens // 8) and texts == again != other
    words = " ".join(texts).split()
    assert all(words.count(word) == 2 for word in ("music", "weather", "turn"))


def test_bad_input(folder, made, tmp_path):
    for wrong, message in (({"dimensions": 17}, "don't fit the teacher"), ({"dimensions": 0}, "don't fit the teacher"),
                           ({"pooling": "last"}, "no such pooling")):
        with pytest.raises(RecipeError, match=message):
            static.distil(folder, **wrong)
    with pytest.raises(DataError, match="has no tokenizer"):
        static.distil(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(DataError, match="gives no model"):
        static.distil(tmp_path)
    with pytest.raises(DataError, match="don't fit the texts"):
        static_tuning.tune(made, TEXTS, np.zeros((len(TEXTS), 6)))
    with pytest.raises(DataError, match="don't fit the texts"):
        static_tuning.tune(made, TEXTS, np.full((len(TEXTS), 16), np.nan))
    for wrong in ({"epochs": 0}, {"held_out": 1.0}, {"lr": -1.0}):
        with pytest.raises(RecipeError, match="tuning can't be run so"):
            static_tuning.tune(made, TEXTS, np.zeros((len(TEXTS), 16)), **wrong)
    with pytest.raises(DataError, match="too few texts"):
        static_tuning.tune(made, TEXTS[:5], np.ones((5, 16)))


def test_a_causal_model_is_no_encoder(folder, tmp_path):
    """Also where its configuration does not say which head it had."""
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    config = transformers.LlamaConfig(vocab_size=80, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="is no encoder"):
        static.distil(tmp_path, dimensions=4)
    transformers.LlamaModel(config).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="is no encoder"):
        static.distil(tmp_path, dimensions=4)
