"""A teacher in this process: any module that gives logits. Works for white-box teachers of every architecture."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from understudy import kinds
from understudy.answer import answer, output_layer
from understudy.collate import Rows
from understudy.errors import RecipeError, four_parts
from understudy.records import UNKNOWN, Batch, Hidden, Knowledge, StudentOutput
from understudy.students.taps import Taps


@dataclass(frozen=True)
class Options:
    """What a recipe may say of a local teacher.

    model: `{arch: ..., options}` or `{factory: "module:function"}`; left out where `weights` is a student folder, which says it itself.
    weights: a .safetensors file or a folder in the Hugging Face layout. train: how to train it here; without `weights` it is needed, unless
    the model's own folder brings them all (`embedder`).
    tokenizer: how it reads texts, as `student.tokenizer`; None: with its folder's, else with the student's.
    seed: of its initialisation and its order of examples. classes: those that it knows, where they are not all of the data's: it has one
    output for each, in the data's order, and learns from their examples alone.
    """

    model: dict[str, Any] | None = None
    weights: str | None = None
    train: dict[str, Any] | None = None
    tokenizer: dict[str, Any] | None = None
    seed: int = 0
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.classes and self.model is None:
            raise RecipeError(four_parts(
                "a local teacher of some classes needs its architecture", got=f"classes: {', '.join(self.classes)}",
                expected="model: {arch: ...}", otherwise="A student folder knows its own classes, and these would be ignored",
                do="Name the architecture, or leave classes out"))
        if self.model is None and self.weights is None:
            raise RecipeError(four_parts(
                "a local teacher needs a model or weights", got="neither", expected="model: {arch: ...} or weights: FILE",
                otherwise="There would be nobody to learn from", do="Add model: {arch: cnn, width: 64}"))
        if self.weights is None and self.train is None and not kinds.architecture(self.model or {}).ready:
            raise RecipeError(four_parts(
                "a local teacher without weights must be trained", got="neither weights nor train", expected="one of them",
                otherwise="The student would learn the answers of random weights", do="Add train: {epochs: 30}, or weights: FILE"))


class Teacher:
    """Logits of a module.

    The module is the caller's own object; it is put in eval mode and frozen here, once. That it stays so is for the self-test to see.
    precision: "bfloat16" computes under autocast (the answers are float32 all the same, with about three correct digits) and is another
    fingerprint; memory_format: "channels_last" suits convolutions on a CPU and changes answers by rounding only.
    taps: layers whose outputs are given as well (`students.taps`); RecipeError for one that is not there. reads: the examples as this
    teacher reads them, where its tokenizer is not the student's: a batch's ids are looked up there.
    """

    def __init__(
        self,
        module: nn.Module,
        fingerprint: str,
        precision: Literal["float32", "bfloat16"] = "float32",
        memory_format: Literal["contiguous", "channels_last"] | None = None,
        taps: Sequence[str] = (),
        reads: Rows | None = None,
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.fingerprint = fingerprint if precision == "float32" else digest([fingerprint, precision])
        self.autocast = precision == "bfloat16"
        self.channels_last = memory_format == "channels_last"
        if self.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.reads = reads
        self._taps: Taps | None = None
        self.tap(taps)

    def tap(self, taps: Sequence[str]) -> None:
        """Give these layers' outputs from now on, in place of those before. RecipeError for a path that is not there."""
        if self._taps is not None:
            self._taps.remove()
        self._taps = Taps(self.module, taps, "the teacher") if taps else None
        self.provides = frozenset({"logits", "features"} if taps else {"logits"})

    def reading(self, rows: Rows) -> Teacher:
        """The same model on other examples, which it reads from these rows."""
        made = copy.copy(self)
        made.reads = rows
        return made

    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """(B, C) float32 logits for the batch, and the tapped layers' outputs."""
        if self.reads is not None:
            batch = replace(batch, inputs=self.reads.inputs(batch.ids))
        if self.channels_last and batch.inputs.ndim == 4:
            batch = replace(batch, inputs=batch.inputs.contiguous(memory_format=torch.channels_last))
        with torch.inference_mode():
            said = self._said(batch)
        # Autograd refuses to save inference tensors, and an objective may multiply by the logits: the copy is an ordinary tensor.
        features = {} if self._taps is None else self._taps.take()
        features = {tap: value.to(torch.float32, copy=True) for tap, value in features.items()}
        if isinstance(said, Hidden):
            return Knowledge(hidden=Hidden(said.states.to(torch.float32, copy=True), said.head), features=features)
        return Knowledge(logits=said.to(torch.float32, copy=True), features=features)

    @property
    def head(self) -> nn.Linear | None:
        """The output layer behind the states that are given of running text; None where logits are."""
        return output_layer(self.module)

    def _said(self, batch: Batch) -> Tensor | Hidden:
        if batch.positions is not None:
            return answer(self.module, batch, self.autocast)
        with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=self.autocast):
            rows: Tensor = self.module(batch.inputs)
        return rows


class Scattered(nn.Module):
    """A model of some of the classes as one of all: the logits of the others are `records.UNKNOWN`, which no softmax sees."""

    def __init__(self, inner: nn.Module, places: Sequence[int], classes: int) -> None:
        super().__init__()
        self.inner, self.classes = inner, classes
        self.register_buffer("places", torch.tensor(list(places)))  # in the state: the same weights for other classes are another teacher

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes)."""
        assert isinstance(self.places, Tensor)
        known: Tensor = self.inner(x)
        return known.new_full((len(known), self.classes), UNKNOWN).index_copy(1, self.places, known)


def fingerprint(module: nn.Module, config: Mapping[str, Any]) -> str:
    """sha256 over the configuration and every parameter and buffer (name, type, shape, bytes) by name; the same in every process."""
    result = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        result.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        result.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def digest(parts: list[Any]) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
