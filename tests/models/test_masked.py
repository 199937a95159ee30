"""models/masked.py on small random folders that transformers writes: the same logits and names, packed rows, new heads, and refusals."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from understudy import kinds, randomness
from understudy.errors import DataError, RecipeError
from understudy.students import weights

transformers = pytest.importorskip("transformers")

V, PAD, START, END = 31, 0, 2, 3
BERT = {"vocab_size": V, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12,
        "max_position_embeddings": 24, "pad_token_id": PAD}  # fmt: skip
CONFIGS = {
    "bert": BERT, "roberta": BERT, "electra": BERT | {"embedding_size": 6},
    "distilbert": {"vocab_size": V, "dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 12, "max_position_embeddings": 24,
                   "pad_token_id": PAD},
    "modernbert": BERT | {"bos_token_id": START, "cls_token_id": START, "eos_token_id": END, "sep_token_id": END},
}  # fmt: skip


def saved(folder, kind="bert", cls="AutoModelForMaskedLM"):
    torch.manual_seed(0)
    made = getattr(transformers, cls).from_config(transformers.AutoConfig.for_model(kind, **CONFIGS[kind])).eval()
    with torch.no_grad():
        for parameter in made.parameters():  # far from the small start, so that attention is not uniform
            parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(folder)
    return made


def build(classes=V, **options):
    return kinds.configure("models", "masked", options).build((12,), classes).eval()


def texts(rows=4, length=9):
    found = torch.randint(4, V, (rows, length), generator=torch.Generator().manual_seed(1))
    found[:, 0], found[1:, -2:] = START, PAD
    return found


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_answers_as_the_library_s_own_model(kind, tmp_path):
    library, x = saved(tmp_path, kind), texts()
    module = build(path=str(tmp_path), pad=PAD)
    assert module.fresh == ()
    expected = library(input_ids=x, attention_mask=(x != PAD).long()).logits
    torch.testing.assert_close(module(x)[x != PAD], expected[x != PAD], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(module.head(module.features(x)), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_its_weights_have_the_library_s_names_and_stay_tied(kind, tmp_path):
    library = saved(tmp_path / "there", kind)
    module = build(path=str(tmp_path / "there"))
    assert set(module.state_dict()) == set(library.state_dict())
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.safetensors").write_bytes(weights.serialise(module))
    written, theirs = (safetensors.torch.load_file(tmp_path / place / "model.safetensors") for place in ("here", "there"))
    assert sum(one.numel() for one in written.values()) == sum(one.numel() for one in theirs.values())
    other = build(config=module.configuration())
    weights.load_weights(other, tmp_path / "here")
    x = texts()
    assert torch.equal(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert weights.tied(module) == weights.tied(other)


@pytest.mark.parametrize("kind", CONFIGS)
def test_no_document_of_a_row_sees_another(kind, tmp_path):
    saved(tmp_path, kind)
    module = build(path=str(tmp_path), start=START, pad=PAD)
    x = torch.tensor([[START, 5, 6, END, START, 7, 8, 9, END, PAD]])
    other = x.clone()
    other[0, 6] = 20
    moved = (module(x) - module(other)).detach().abs().amax(2)[0]
    assert moved[:4].max() == 0 and moved[4:9].min() > 1e-4 and bool(torch.isfinite(module(x)).all())
    together = build(path=str(tmp_path), pad=PAD)
    assert (together(x) - together(other)).detach().abs()[0, :4].max() > 1e-4


def test_an_encoder_without_the_layers_that_fill_in_gets_new_ones(tmp_path):
    saved(tmp_path, cls="AutoModel")
    with randomness.seeded(5):
        module = build(path=str(tmp_path))
    with randomness.seeded(5):
        again = build(path=str(tmp_path))
    assert module.fresh and all(name.startswith("cls.predictions.") for name in module.fresh)
    assert torch.equal(module(texts()), again(texts()))
    assert module.head.weight is module.model.bert.embeddings.word_embeddings.weight


def test_a_folder_without_some_layer_is_refused(tmp_path):
    saved(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    kept = {name: value for name, value in state.items() if "layer.1" not in name}
    safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match="holds no whole encoder"):
        build(path=str(tmp_path))


@pytest.mark.parametrize("config", [{"model_type": "llama"}, BERT | {"model_type": "bert", "is_decoder": True}])
def test_models_that_read_from_left_to_right_are_refused(config):
    with pytest.raises(RecipeError, match="does not fill in masked tokens"):
        build(config=config)


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(RecipeError, match="more tokens than the model"):
        build(classes=V + 1, config=BERT | {"model_type": "bert"})


@pytest.mark.parametrize("options", [{}, {"path": "x", "config": BERT}])
def test_a_path_or_a_config_is_needed(options):
    with pytest.raises(RecipeError, match="a path or a config"):
        kinds.configure("models", "masked", options)


@pytest.mark.parametrize("kind", CONFIGS)
def test_rows_behind_the_last_token_are_cut_off_everywhere(kind, tmp_path):
    """What remains are the same logits; what was shared is shared, and the library reads the folder."""
    saved(tmp_path / "there", kind)
    module, x = build(path=str(tmp_path / "there"), pad=PAD), texts().clamp(max=V - 4)
    before, tied = module(x), module.head.weight is module.model.get_input_embeddings().weight
    module.trim(V - 3)
    assert module.classes == V - 3 and all(V not in part.shape for part in module.parameters())
    torch.testing.assert_close(module(x), before[..., : V - 3], rtol=0, atol=0)
    assert (module.head.weight is module.model.get_input_embeddings().weight) == tied
    again = build(classes=V - 3, config=module.configuration(), pad=PAD)
    weights.fill(again, safetensors.torch.load(weights.serialise(module)))
    torch.testing.assert_close(again(x), module(x), rtol=0, atol=0)
