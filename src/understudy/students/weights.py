"""Weights from safetensors into a module, strictly; never from a pickle, because reading one runs what lies in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from understudy.errors import DataError, four_parts

FILE = "model.safetensors"
PICKLES = frozenset({".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".th", ".joblib"})


def load_weights(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Copy the tensors of a .safetensors file, or of a folder in the Hugging Face layout, into `module`, name by name.

    Every parameter and buffer must be there with its shape, and nothing else; types are converted to the module's.
    Only the counters of batch norm (`num_batches_tracked`) may be missing. The module is unchanged where DataError is raised:
    for a missing or broken file, a pickle, other names or other shapes.
    """
    file = weights_file(path)
    tensors = read(file)
    check_fit(module, tensors, file)
    fill(module, tensors)


def check_fit(module: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """DataError unless the tensors have the module's names and shapes (which may lie on the meta device)."""
    own = module.state_dict()
    again = tied(module)
    missing = [name for name in own if again.get(name, name) not in tensors and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        raise DataError(four_parts(
            f'"{file}" holds the weights of another model', expected=f"the {len(own)} tensors of this {type(module).__name__}",
            got=f"{len(tensors)} tensors; missing {few(missing)}; unexpected {few(unexpected)}",
            otherwise="The layers without weights would answer at random", do="Name the architecture that made these weights"))
    shapes = [f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
              for name in tensors if tensors[name].shape != own[name].shape]
    if shapes:
        raise DataError(four_parts(
            f'"{file}" does not fit this {type(module).__name__}', got=few(shapes), expected="the same shapes",
            otherwise="The layers could not be filled", do="Check width, depth, input size and the number of classes"))


def fill(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors that fit into the module."""
    own = module.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def weights_file(path: str | os.PathLike[str]) -> Path:
    """The safetensors file that `path` names: itself, or model.safetensors of a folder. DataError for anything else."""
    path = Path(path)
    if path.is_dir():
        inside = path / FILE
        if inside.is_file():
            return inside
        found = sorted(item.name for item in path.iterdir() if item.suffix.lower() in PICKLES)
        if found:
            raise refuse_pickle(path, f"only {few(found)}")
        raise DataError(four_parts(
            f'"{path}" holds no weights', got=few(sorted(item.name for item in path.iterdir())), expected=FILE,
            otherwise="The model would answer at random", do="Name the folder that has it; weights in several shards must be merged first"))
    if path.suffix.lower() in PICKLES:
        raise refuse_pickle(path, f"a {path.suffix} file")
    if not path.is_file():
        raise DataError(four_parts(
            f'"{path}" can\'t be read', got="no such file or folder", expected="a .safetensors file, or a folder with " + FILE,
            otherwise="The model would answer at random", do="Check the path"))
    return path


def read(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, in memory of their own. DataError for a truncated or foreign file."""
    try:
        return safetensors.torch.load(file.read_bytes())
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise DataError(four_parts(
            f'"{file}" is not a whole safetensors file', got=str(error), expected="a file that safetensors can read",
            otherwise="The model would answer at random", do="Copy the file again")) from None


def serialise(module: nn.Module) -> bytes:
    """The module's parameters and buffers as a safetensors file; the same tensors give the same bytes. Tied weights are written once."""
    tensors = {}
    state = module.state_dict()
    for name in tied(module):
        del state[name]
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise DataError(four_parts(
                f"{type(module).__name__} keeps state that is no tensor", got=f"{name}: {type(value).__name__}", expected="tensors",
                otherwise="It would have to be pickled", do="Keep it in a buffer, or give it in the model's configuration"))
        tensors[name] = value.detach().cpu().contiguous().clone()
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def tied(module: nn.Module) -> dict[str, str]:
    """{name: the name before it under which the same parameter stands} of a module's state."""
    first: dict[int, str] = {}
    found = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if id(value) in first:
            found[name] = first[id(value)]
        first.setdefault(id(value), name)
    return found


def few(names: list[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


def refuse_pickle(path: Path, got: str) -> DataError:
    """The error for weights that only exist as a pickle."""
    return DataError(four_parts(
        f'"{path}" is a pickle', got=got, expected="safetensors",
        otherwise="Reading a pickle runs whatever code lies in it",
        do="Convert it where you trust it: safetensors.torch.save_file(state_dict, ...)"))
