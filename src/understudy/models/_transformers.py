"""What the architectures of the transformers library share: how it is imported, a configuration read, weights named as it names them.

The library is imported where a model is built; no code of a folder or hub is ever run, and weights are read from safetensors alone. Not a
kind (the name begins with `_`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from understudy.errors import DataError, RecipeError, four_parts

DROPOUTS = ("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "resid_dropout", "residual_dropout", "embedding_dropout",
            "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "activation_dropout",
            "classifier_dropout")  # fmt: skip
"""What configurations call it."""


def configured(path: str, config: Mapping[str, Any], dropout: float | None, **named: Any) -> Any:
    """The library's configuration of a folder or hub id, or of the fields of a config.json. DataError where it gives none.

    dropout: in place of all of its own. named: further fields that are set.
    """
    kit = library()
    try:
        found = (kit.AutoConfig.for_model(**(dict(config) | named)) if config else
                 kit.AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=Path(path).exists(), **named))  # fmt: skip
    except (OSError, ValueError) as error:
        raise unusable(path or "config", error) from None
    if dropout is not None:
        for name in DROPOUTS:
            if getattr(found, name, None) is not None:
                setattr(found, name, dropout)
    return found


def loaded(kind: Any, path: str, config: Any, **more: Any) -> Any:
    """What `from_pretrained` of one of the library's Auto classes gives, in float32. DataError where the folder gives no such model."""
    try:
        return kind.from_pretrained(path, config=config, dtype="float32", use_safetensors=True, trust_remote_code=False,
                                    local_files_only=Path(path).exists(), **more)
    except (OSError, ValueError, RuntimeError) as error:
        raise unusable(path, error) from None


def described(model: Any) -> dict[str, Any]:
    """config.json as the library writes it, less what names a place or a version."""
    found: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return {name: value for name, value in found.items() if name not in ("_name_or_path", "transformers_version")}


def without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A hook on `state_dict`: the library's module is `model`, and its weights have the names that the library gives them."""
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        state[prefix + name.removeprefix(f"{prefix}model.")] = state.pop(name)


def with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *words: Any) -> None:
    """The reverse, before a state is loaded."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}model.{name.removeprefix(prefix)}"] = state.pop(name)


def library() -> Any:
    """The transformers package, silent. RecipeError where it is not installed."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import transformers
    except ImportError:
        raise RecipeError(four_parts(
            "this model needs the transformers package", got="it is not installed", expected="pip install 'understudy[hf]'",
            otherwise="The model could not be built", do="Install it")) from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


def unusable(path: str, error: Exception) -> DataError:
    """The error for a folder, or a hub id, that gives no model."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return DataError(four_parts(
        f'"{path}" gives no model', got=(lines or [type(error).__name__])[0][:300],
        expected="a folder with config.json, model.safetensors and tokenizer.json, or the id of one on the hub",
        otherwise="There would be nobody to learn from", do="Check the path; pickled weights (.bin) are refused: save with safetensors"))


def config_of(folder: str) -> dict[str, Any]:
    """config.json of a folder."""
    try:
        found = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unusable(folder, error) from None
    return dict(found)
