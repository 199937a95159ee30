"""What the architectures share whose module is the transformers library's own: its names in the state, its configuration on disk."""

from __future__ import annotations

import json
from typing import Any

from torch import nn


def own_names(module: nn.Module) -> None:
    """The module's state with the names of its part `model`: the library reads the weights that are written here, and the reverse."""
    module.register_state_dict_post_hook(without_prefix)
    module.register_load_state_dict_pre_hook(with_prefix)


def without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """A hook on `state_dict`."""
    for name in [name for name in state if name.startswith(f"{prefix}model.")]:
        state[prefix + name.removeprefix(f"{prefix}model.")] = state.pop(name)


def with_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *words: Any) -> None:
    """The reverse, before a state is loaded."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}model.{name.removeprefix(prefix)}"] = state.pop(name)


def written(model: Any) -> dict[str, Any]:
    """config.json of a model of the library as it writes it, less what names a place or a version."""
    found: dict[str, Any] = json.loads(model.config.to_json_string(use_diff=False))
    return {name: value for name, value in found.items() if name not in ("_name_or_path", "transformers_version")}
