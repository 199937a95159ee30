"""The student as it is shipped: a folder of config.json, model.safetensors and README.md that needs nothing but itself.

The layout is the Hugging Face one. Weights are tensors, the configuration is plain JSON, nothing in the folder is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from understudy import atomic, kinds
from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess import Preprocess
from understudy.preprocess.passages import Passages
from understudy.students import weights
from understudy.students.calls import answered, padding
from understudy.students.generate import generate

SCHEMA = 1
CONFIG = "config.json"
CARD = "README.md"


@dataclass(frozen=True)
class Student:
    """A loaded student. config: all of config.json; `module` is in eval mode."""

    module: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    config: Mapping[str, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one model input."""
        return self.preprocess.shape

    @property
    def vectors(self) -> int | None:
        """How many numbers the vector of a text has; None for a student of another kind."""
        found = self.config.get("vectors")
        return None if found is None else int(found)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 vectors of texts. RecipeError for a student that makes none, DataError for anything but a list of texts."""
        if self.vectors is None:
            raise RecipeError(four_parts(
                "this student makes no vectors", got=f"a student for inputs of kind {self.preprocess.kind}",
                expected="one of sentence vectors", otherwise="Answers would be taken for places in a space",
                do="Use predict, or generate for one that writes"))
        return self.logits(self.preprocess.encode(texts)) if len(texts) else np.zeros((0, self.vectors), np.float32)

    def predict(self, raw: Any) -> np.ndarray:
        """(N, C) float32 probabilities of raw inputs, as they were given in training: pixels, numbers, or columns of a table."""
        if isinstance(self.preprocess, Passages) and self.preprocess.mask is not None:
            raise RecipeError(four_parts(
                "this student fills in tokens", got="a masked language model", expected="one that tells classes apart",
                otherwise="Tokens would be taken for classes", do="Load the folder with transformers: AutoModelForMaskedLM"))
        if self.vectors is not None:
            raise RecipeError(four_parts(
                "this student knows no classes", got="a student of sentence vectors", expected="one that tells classes apart",
                otherwise="Numbers of a vector would be taken for classes", do="Use encode"))
        if isinstance(self.preprocess, Passages):
            raise RecipeError(four_parts(
                "this student writes", got="a student that says what comes next", expected="one that tells classes apart",
                otherwise="Tokens would be taken for classes", do="Use generate, or `understudy generate`"))
        logits = torch.from_numpy(self.logits(self.preprocess.encode(raw)))
        return torch.softmax(logits, dim=-1).numpy()

    def generate(
        self, prompts: Sequence[str], *, most: int = 64, temperature: float = 0.0, top_k: int | None = None, top_p: float | None = None,
        seed: int = 0,
    ) -> list[str]:
        """What the student writes behind each prompt, up to `most` tokens or the end of a document; at temperature 0 what is likeliest.

        The same prompts, settings and seed give the same texts. RecipeError for a student that does not write, DataError for a prompt that
        leaves no room.
        """
        read = self.preprocess
        if not isinstance(read, Passages) or read.mask is not None:
            kind = "masked text" if isinstance(read, Passages) else read.kind
            raise RecipeError(four_parts(
                "this student does not write", got=f"a student for inputs of kind {kind}", expected="one that says what comes next",
                otherwise="Its classes would be taken for words", do="Use predict"))
        given = [torch.from_numpy(np.array([read.start, *ids])) for ids in (one.ids for one in read.tokenizer.literal.encode_batch_fast(
            list(prompts), add_special_tokens=False))]
        long = next((at for at, ids in enumerate(given) if len(ids) >= read.length), None)
        if long is not None:
            raise DataError(four_parts(
                f"prompt {long + 1} leaves no room for an answer", got=f"{len(given[long])} tokens", expected=f"fewer than {read.length}",
                otherwise="The student would read further than it ever has in training", do="Shorten it"))
        made = generate(
            self.module, given, most=most, temperature=temperature, top_k=top_k, top_p=top_p, stop=[read.end], seed=seed,
            cached=hasattr(self.module, "step"))
        return [read.tokenizer.inner.decode(one.tokens.tolist()) for one in made]

    def predict_file(self, path: str | os.PathLike[str]) -> np.ndarray:
        """(N, C) float32 probabilities of what a file holds: an image, rows of a table, an array."""
        return self.predict(self.preprocess.read_input(path))

    def logits(self, encoded: np.ndarray) -> np.ndarray:
        """(N, C) float32 logits of encoded inputs (`preprocess.encode`), some rows at a time."""
        return module_logits(self.module, self.preprocess, encoded)


def module_logits(module: nn.Module, preprocess: Preprocess, encoded: np.ndarray) -> np.ndarray:
    """(N, C) float32 logits that a module in eval mode gives for encoded inputs, some rows at a time."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def call(rows: np.ndarray) -> np.ndarray:
        said: np.ndarray = module(torch.from_numpy(preprocess.normalise(rows)).to(device)).float().cpu().numpy()
        return said

    with torch.inference_mode():
        return answered(encoded, padding(preprocess), call)


def save(folder: str | os.PathLike[str], module: nn.Module, *, model: Mapping[str, Any], shape: tuple[int, ...], classes: Sequence[str],
         preprocess: Mapping[str, Any], card: str, extra: Mapping[str, Any] | None = None,
         files: Mapping[str, bytes] | None = None, vectors: int | None = None) -> Path:
    """Write the folder; it is whole or, where it is new, not there at all.

    Args:
        model: `{"arch": ..., options}`, complete; `{"arch": None, "class": "package.Class"}` for a module of one's own, which `load` needs.
        shape: of one model input. classes: names in the order of the logits, kept verbatim. preprocess: `Preprocess.to_dict()`.
        card: Markdown; whoever writes it escapes the names in it. extra: anything that is JSON, kept under "extra". files: further ones,
            which other programs look for (tokenizer.json). vectors: of a student of vectors how many numbers one has, in place of classes.

    An existing folder keeps its other files; its three are replaced, config.json last, whose sha256 of the weights shows a replacement
    that was cut off. Raises DataError for values that are not JSON, and for module state that is no tensor.
    """
    folder = Path(os.path.abspath(folder))
    data = weights.serialise(module)
    try:
        publish: Any = getattr(module, "published", None)
        published = publish(classes) if publish else {"model_type": "understudy", "architectures": [type(module).__name__]}
        config = json.dumps({
            **published, "schema": SCHEMA, "model": dict(model),
            "shape": list(shape), "classes": list(classes), "preprocess": dict(preprocess),
            **({} if vectors is None else {"vectors": vectors}),
            "weights": {"file": weights.FILE, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data),
                        "parameters": sum(parameter.numel() for parameter in module.parameters())},
            "extra": dict(extra or {})}, indent=2, allow_nan=False)  # ASCII: class names from file names may be no valid UTF-8
    except (TypeError, ValueError) as error:
        raise DataError(four_parts(
            "the student's configuration can't be written", got=str(error), expected="plain finite JSON values",
            otherwise="It could not be read back", do="Leave out what is no text, number, list or mapping")) from None
    with whole(folder) as made:
        atomic.write_bytes(made / weights.FILE, data)
        for name, content in (files or {}).items():
            atomic.write_bytes(made / name, content)
        atomic.write_bytes(made / CARD, card.encode("utf-8", "backslashreplace"))
        atomic.write_bytes(made / CONFIG, config.encode("ascii") + b"\n")
    return folder


@contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends without an error, and else vanishes.

    Where `folder` exists, its other files stay; the new ones replace theirs one by one, config.json last.
    """
    made = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        yield made
        if folder.exists():
            files = [str(file.relative_to(made)) for file in made.rglob("*") if file.is_file()]
            for name in sorted(files, key=lambda name: (name == CONFIG, name)):
                (folder / name).parent.mkdir(exist_ok=True)
                os.replace(made / name, folder / name)
            atomic.sync(folder)
        else:
            os.rename(made, folder)
        atomic.sync(folder.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def load(folder: str | os.PathLike[str], module: nn.Module | None = None) -> Student:
    """The student of a folder that `save` wrote.

    module: where the student is a module of one's own, an instance of its class; its weights are overwritten.

    Raises DataError for a folder that is no student, which a run that is not finished has not, was written by another version, holds a
    pickle instead of safetensors, or whose weights are not those that config.json names; RecipeError where `module` is needed and not
    given.
    """
    folder = Path(folder)
    if not folder.exists() and (folder.parent / "recipe.yaml").is_file():
        raise DataError(four_parts(
            f'"{folder.parent}" holds no finished run', got=f"no {folder.name}/", expected="the student of a run",
            otherwise="There would be nobody to ask", do="Run its recipe to the end first"))
    file = weights.weights_file(folder)
    config = read_config(folder)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    try:
        shape, classes = tuple(int(side) for side in config["shape"]), tuple(str(name) for name in config["classes"])
        arch, options = config["model"].get("arch"), {key: value for key, value in config["model"].items() if key != "arch"}
        stated, preprocess = config["weights"]["sha256"], Preprocess.from_dict(config["preprocess"])
        outputs = preprocess.vocabulary if isinstance(preprocess, Passages) else int(config.get("vectors") or len(classes))
        if preprocess.shape != shape or outputs < 2:
            raise ValueError(f"shape {shape} with inputs of shape {preprocess.shape} and {outputs} classes")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise broken(folder, f"{type(error).__name__}: {error}") from None
    if digest != stated:
        raise DataError(four_parts(
            f'the weights in "{folder}" are not the ones that were saved', got=f"sha256 {digest[:12]}", expected=str(stated)[:12],
            otherwise="The card and the report would describe another model", do="Copy the folder again, or take it from the run"))
    tensors = weights.read(file)
    if module is None:
        module = _build(folder, arch, options, shape, outputs)
        weights.check_fit(module, tensors, file)
        # Some buffers are in no file, and `to_empty` would give each name of a tied weight a tensor of its own.
        if weights.tied(module) or any(part._non_persistent_buffers_set for part in module.modules()):
            module = _build(folder, arch, options, shape, outputs, "cpu")
        else:
            module.to_empty(device="cpu")
    weights.check_fit(module, tensors, file)
    weights.fill(module, tensors)
    return Student(module.eval(), classes, preprocess, config)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a student folder, with the schema that this version reads."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise broken(folder, f"{CONFIG}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        raise DataError(four_parts(
            f'"{folder}" was not written by this version', got=f"schema {config.get('schema') if isinstance(config, dict) else None}",
            expected=f"schema {SCHEMA}", otherwise="Its fields would be read with another meaning",
            do="Use the version of understudy that wrote it; a model of another program is a `weights` folder, not a student"))
    return config


def broken(folder: Path, got: str) -> DataError:
    """The error for a folder whose configuration is not usable."""
    return DataError(four_parts(
        f'"{folder}" is no student folder', got=got, expected=f"{CONFIG}, {weights.FILE} and {CARD} as understudy wrote them",
        otherwise="The model or its preprocessing would be guessed", do="Take the folder `student/` of a run"))


def _build(
    folder: Path, arch: object, options: Mapping[str, Any], shape: tuple[int, ...], classes: int, device: str = "meta"
) -> nn.Module:
    """The architecture; on "meta" without memory behind its tensors, so that a config that lies about sizes allocates nothing."""
    if arch is None:
        raise RecipeError(four_parts(
            f'"{folder}" holds a student of another program\'s class', got="no module",
            expected=f"an instance of {options.get('class', 'it')}", otherwise="Its code would have to be found and run",
            do="Build the module yourself and pass it: load(folder, module=...)"))
    try:
        with torch.device(device):
            return kinds.configure("models", str(arch), options, f"{folder / CONFIG}").build(shape, classes)
    except RecipeError as error:
        raise DataError(str(error)) from None
