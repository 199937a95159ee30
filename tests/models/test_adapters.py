"""models/_adapters.py, through models/causal.py: little is trained, nothing changes at the start, and what ships is a plain model."""

from __future__ import annotations

import pytest
import torch
import transformers

from understudy import kinds
from understudy.errors import RecipeError

pytest.importorskip("peft", reason="needs the peft package")
TOKENS = torch.tensor([[1, 5, 6, 7, 8, 9], [1, 9, 8, 7, 6, 5]])
CONFIGS = {
    "llama": {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
              "tie_word_embeddings": True},
    "gpt2": {"vocab_size": 20, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
             "attn_pdrop": 0.0}}


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(request.param, **CONFIGS[request.param], pad_token_id=0, bos_token_id=1, eos_token_id=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    return tmp_path


def build(folder, **options):
    torch.manual_seed(1)
    return kinds.configure("models", "causal", {"path": str(folder), **options}).build((6,), 20)


def trained(module, steps=5):
    """Moved by a loss that only asks for other answers."""
    moving = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(moving, lr=0.5)
    for _ in range(steps):
        torch.nn.functional.cross_entropy(module(TOKENS).flatten(0, 1), TOKENS.roll(-1, 1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return module.eval()


def test_nothing_changes_before_the_first_step(folder):
    with torch.inference_mode():
        torch.testing.assert_close(build(folder, lora=2)(TOKENS), build(folder)(TOKENS))


def test_only_adapters_learn_and_folding_them_changes_no_answer(folder):
    plain, module = build(folder), build(folder, lora=2, lora_alpha=3.0)
    moving = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
    assert 0 < moving < 0.5 * sum(parameter.numel() for parameter in plain.parameters())
    before = {name: value.clone() for name, value in module.state_dict().items() if "lora" not in name}
    trained(module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items() if "lora" not in name)
    with torch.inference_mode():
        learnt = module(TOKENS)
        module.finish()
        torch.testing.assert_close(module(TOKENS), learnt, rtol=1e-4, atol=1e-5)
        assert (learnt - plain(TOKENS)).abs().max() > 1e-2
    assert list(module.state_dict()) == list(plain.state_dict()) and all(one.requires_grad for one in module.parameters())
    module.finish()  # a second time does nothing
    with torch.inference_mode():
        torch.testing.assert_close(module(TOKENS), learnt, rtol=1e-4, atol=1e-5)


def test_what_is_folded_in_is_the_formula(folder):
    """W + (alpha / rank) B A, of one layer, by hand."""
    module = trained(build(folder, lora=2, lora_alpha=3.0))
    name = next(name for name, _ in module.named_modules() if name.endswith(("q_proj", "c_attn")))
    layer = module.get_submodule(name)
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    added = 3.0 / 2 * up @ down
    before = layer.get_base_layer().weight.detach().clone()
    expected = before + (added if added.shape == before.shape and "q_proj" in name else added.T)
    module.finish()
    torch.testing.assert_close(module.get_submodule(name).weight, expected)


@pytest.mark.parametrize(("options", "said"), [
    ({"path": "x", "lora": 0}, "lora is not usable"),
    ({"config": {"model_type": "llama"}, "lora": 2}, "lora is not usable"),
    ({"path": "x", "lora_alpha": 2.0}, "lora_alpha is not usable"),
    ({"path": "x", "lora": 2, "lora_alpha": -1.0}, "lora_alpha is not usable"),
])
def test_what_makes_no_adapter(options, said):
    with pytest.raises(RecipeError, match=said):
        kinds.configure("models", "causal", options)
