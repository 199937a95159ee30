"""models/causal.py on small random folders that transformers writes: the same logits, packed rows, caches, and what is refused."""

from __future__ import annotations

import json

import pytest
import safetensors.torch
import torch
from torch import nn

from understudy import kinds
from understudy.errors import DataError, RecipeError
from understudy.models.causal import within
from understudy.students import weights
from understudy.students.generate import generate, speculative

transformers = pytest.importorskip("transformers")

V, START = 29, 2
LLAMA = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3}
GPT2 = {"vocab_size": V, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 3,
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
NEOX = LLAMA | {"hidden_dropout": 0.0, "attention_dropout": 0.0}
CONFIGS = {
    "llama": LLAMA, "gpt2": GPT2, "qwen2": LLAMA, "qwen3": LLAMA | {"head_dim": 8}, "mistral": LLAMA | {"sliding_window": 40},
    "gpt_neox": NEOX, "olmo2": LLAMA, "phi": LLAMA | {"resid_pdrop": 0.0, "embd_pdrop": 0.0}, "smollm3": LLAMA, "stablelm": LLAMA}
"""Those whose documents are kept apart by a mask."""
APART = {"mistral": LLAMA | {"sliding_window": 3}, "opt": {
    "vocab_size": V, "hidden_size": 16, "ffn_dim": 20, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
    "word_embed_proj_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 3, "dropout": 0.0}}  # fmt: skip
"""Those whose documents are read one a row."""


def library_model(kind, config, seed=0, cls=transformers.AutoModelForCausalLM):
    torch.manual_seed(seed)
    made = cls.from_config(transformers.AutoConfig.for_model(kind, **config)).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # far from the small start, so that attention is not uniform
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def saved(folder, kind="llama", config=LLAMA, **options):
    made = library_model(kind, config, **options)
    made.save_pretrained(folder)
    return made


def build(classes=V, length=12, **options):
    return kinds.configure("models", "causal", options).build((length,), classes).eval()


def packed(rows, length, seed=0, every=5):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, V, (rows, length), generator=generator)
    tokens[torch.randint(0, every, (rows, length), generator=generator) == 0] = START
    return tokens


def documents_alone(module, tokens):
    """The slow twin: every document of every row by itself."""
    found = torch.zeros(*tokens.shape, V)
    for row, line in enumerate(tokens.tolist()):
        begins = sorted({0, *(at for at, token in enumerate(line) if token == START)})
        for first, end in zip(begins, [*begins[1:], len(line)], strict=True):
            found[row, first:end] = module(tokens[row:row + 1, first:end])[0]
    return found


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "phi"])
def test_a_folder_gives_the_library_s_logits(kind, tmp_path):
    theirs = saved(tmp_path, kind, CONFIGS[kind])
    module, tokens = build(path=str(tmp_path)), packed(3, 12)
    with torch.no_grad():
        expected = theirs(input_ids=tokens).logits
        torch.testing.assert_close(module(tokens), expected)
        torch.testing.assert_close(module.head(module.features(tokens)), expected, rtol=1e-4, atol=1e-5)
    assert type(module.head) is nn.Linear and module.classes == V and (module.head.bias is not None) == (kind == "phi")
    assert sorted(module.state_dict()) == sorted(theirs.state_dict())


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("apart", [False, True])
def test_documents_of_a_row_are_read_as_if_alone(kind, apart, monkeypatch):
    """Both ways: by a mask with positions that begin again, and one a row."""
    module = build(config=CONFIGS[kind] | {"model_type": kind}, start=START)
    module.model.load_state_dict(library_model(kind, CONFIGS[kind]).state_dict())
    assert module.masked(12)
    if apart:
        monkeypatch.setattr(type(module), "masked", lambda *_: False)
    tokens = packed(4, 12)
    tokens[3, 0] = 5
    with torch.no_grad():
        expected = documents_alone(module, tokens)
        torch.testing.assert_close(module(tokens), expected, rtol=1e-4, atol=1e-5)
        module.start = None
        assert not torch.allclose(module(tokens), expected, rtol=1e-3, atol=1e-3), "else this test sees nothing"


@pytest.mark.parametrize("kind", APART)
def test_an_architecture_that_takes_no_mask_reads_one_document_a_row(kind):
    module = build(config=APART[kind] | {"model_type": kind}, start=START)
    module.model.load_state_dict(library_model(kind, APART[kind]).state_dict())
    assert not module.masked(12)
    tokens = packed(4, 12)
    with torch.no_grad():
        torch.testing.assert_close(module(tokens), documents_alone(module, tokens), rtol=1e-4, atol=1e-5)
    with pytest.raises(RecipeError, match="second document"):
        module.step(torch.tensor([[START, 5, START, 6]]))


def test_places_inside_documents_by_hand():
    assert within(torch.tensor([[0, 0, 1, 1, 1, 2], [1, 1, 1, 1, 2, 3]])).tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 0, 0]]


@pytest.mark.parametrize(("kind", "every"), [
    *((kind, every) for kind in ("llama", "gpt2", "qwen2") for every in (4, 1000)), ("window", 1000)])
def test_step_by_step_equals_the_whole(kind, every, tmp_path):
    """With one document a row and with several; with a draft that is taken back, and rows that are left out; and where layers see only
    the last three tokens, of which a draft that is taken back must not have pushed out any."""
    saved(tmp_path, *(("mistral", APART["mistral"]) if kind == "window" else (kind, CONFIGS[kind])))
    module, tokens = build(path=str(tmp_path), start=START), packed(3, 14, every=every)
    with torch.no_grad():
        whole = module(tokens)
    cache, logits = None, []
    for part in tokens[:, :9].split([4, 1, 1, 3], 1):
        found, cache = module.step(part, cache)
        logits.append(found)
    torch.testing.assert_close(torch.cat(logits, 1), whole[:, :9], rtol=1e-4, atol=1e-5)
    _, cache = module.step(packed(3, 4, seed=5, every=every), cache)
    assert cache.length == 13
    cache = cache.cut(9)
    found, cache = module.step(tokens[:, 9:12], cache, last=2)
    torch.testing.assert_close(found, whole[:, 10:12], rtol=1e-4, atol=1e-5)
    rows = torch.tensor([2, 0])
    found, _ = module.step(tokens[rows, 12:], cache.select(rows))
    torch.testing.assert_close(found, whole[rows, 12:], rtol=1e-4, atol=1e-5)


def test_texts_with_and_without_a_cache_and_by_the_library_are_the_same(tmp_path):
    theirs = saved(tmp_path)
    module = build(path=str(tmp_path))
    prompts = [torch.tensor(row) for row in ([START, 5, 9], [START], [START, 8, 4, 11, 20])]
    made, plain = (generate(module, prompts, most=8, stop=[3], cached=cached) for cached in (True, False))
    for prompt, one, two in zip(prompts, made, plain, strict=True):
        assert torch.equal(one.tokens, two.tokens)
        torch.testing.assert_close(one.log_probs, two.log_probs, rtol=0, atol=1e-5)
        expected = theirs.generate(prompt[None], attention_mask=torch.ones_like(prompt)[None], max_new_tokens=8, do_sample=False)
        assert torch.equal(one.tokens, expected[0, len(prompt):])
        assert torch.equal(speculative(module, module, prompt, most=8, stop=[3]).tokens, one.tokens)


def test_a_vocabulary_that_was_rounded_up_is_known(tmp_path):
    """Prevents: a student of 25 tokens is compared with a teacher of 29 column by column, and nobody says so."""
    saved(tmp_path)
    assert build(path=str(tmp_path), classes=25).classes == V
    with pytest.raises(RecipeError, match="more tokens than the model"):
        build(path=str(tmp_path), classes=V + 1)


def test_encoders_and_other_models_are_refused(tmp_path):
    bert = {"vocab_size": V, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    saved(tmp_path / "bert", "bert", bert, cls=transformers.AutoModelForMaskedLM)
    t5 = {"vocab_size": V, "d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
    saved(tmp_path / "t5", "t5", t5, cls=transformers.AutoModelForSeq2SeqLM)
    for options in ({"path": str(tmp_path / "bert")}, {"path": str(tmp_path / "t5")}, {"config": bert | {"model_type": "bert"}},
                    {"config": {"model_type": "vit"}}):
        with pytest.raises(RecipeError, match="left to right"):
            build(**options)


def test_a_body_without_its_output_layer_is_refused(tmp_path):
    """Prevents: the library fills the missing layer with random numbers, and a teacher that says nothing is distilled."""
    saved(tmp_path / "body", cls=transformers.AutoModel)
    with pytest.raises(DataError, match="no whole language model.*lm_head"):
        build(path=str(tmp_path / "body"))
    saved(tmp_path / "tied", config=LLAMA | {"tie_word_embeddings": True})
    assert "lm_head.weight" not in safetensors.torch.load_file(tmp_path / "tied" / weights.FILE)
    module = build(path=str(tmp_path / "tied"))
    assert module.head.weight is module.model.get_input_embeddings().weight


def test_pickles_and_folders_without_a_model_are_refused(tmp_path):
    made = saved(tmp_path / "a")
    (tmp_path / "a" / weights.FILE).unlink()
    torch.save(made.state_dict(), tmp_path / "a" / "pytorch_model.bin")
    (tmp_path / "b").mkdir()
    for name in ("a", "b"):
        with pytest.raises(DataError, match="gives no model"):
            build(path=str(tmp_path / name))


@pytest.mark.parametrize(("kind", "more"), [
    ("gemma2", {"final_logit_softcapping": 30.0, "head_dim": 4}), ("cohere", {"logit_scale": 0.5}), ("granite", {"logits_scaling": 2.0})])
def test_logits_that_are_no_linear_map_come_without_a_head(kind, more):
    """A fused loss would leave out the cap or the scale and teach other probabilities than the model's."""
    module = build(config=LLAMA | {"model_type": kind} | more)
    theirs = library_model(kind, LLAMA | more)
    module.model.load_state_dict(theirs.state_dict())
    tokens = packed(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(module(tokens), theirs(input_ids=tokens).logits)
    assert module.head is None
    with pytest.raises(RecipeError, match="more than a linear map"):
        module.features(tokens)


def test_a_scale_that_nobody_named_is_seen_on_the_first_tokens(monkeypatch):
    forward = transformers.LlamaForCausalLM.forward

    def halved(self, *given, **options):
        found = forward(self, *given, **options)
        found.logits = found.logits / 2
        return found

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", halved)
    assert build(config=LLAMA | {"model_type": "llama"}).head is None


def test_a_student_is_whole_without_its_folder(tmp_path):
    saved(tmp_path / "teacher", "gpt2", GPT2)
    module = build(path=str(tmp_path / "teacher"), start=START)
    again = build(**module.portable(), start=START)
    tensors = safetensors.torch.load(weights.serialise(module))
    weights.check_fit(again, tensors, tmp_path / weights.FILE)
    weights.fill(again, tensors)
    tokens = packed(2, 12)
    assert torch.equal(again(tokens), module(tokens))
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(module.published(["a"]) | {"schema": 1, "model": {"arch": "causal"}, "classes": ["a"]}))
    (folder / weights.FILE).write_bytes(weights.serialise(module))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    with torch.no_grad():
        torch.testing.assert_close(theirs(input_ids=tokens[:, 1:]).logits, build(path=str(folder))(tokens[:, 1:]))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dropout_takes_the_place_of_the_configuration_s(kind):
    torch.manual_seed(0)
    module, tokens = build(config=CONFIGS[kind] | {"model_type": kind}, dropout=0.5), packed(2, 8)
    assert torch.equal(module(tokens), module(tokens)) and not torch.equal(module.train()(tokens), module(tokens))
    module = build(config=CONFIGS[kind] | {"model_type": kind, "attention_dropout": 0.3, "attn_pdrop": 0.3}, dropout=0.0).train()
    assert torch.equal(module(tokens), module(tokens))


@pytest.mark.parametrize(("options", "words"), [({}, "path or a config"), ({"path": "a", "config": LLAMA}, "path or a config"),
                                                ({"config": LLAMA | {"model_type": "llama"}, "start": V}, "start")])
def test_what_can_not_be_meant_is_refused(options, words):
    with pytest.raises(RecipeError, match=words):
        build(**options)
