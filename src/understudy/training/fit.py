"""One model from its first step to its best weights: rows, validation, checkpoints and exact resume around the loop."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from understudy import atomic, randomness
from understudy.errors import Interrupted
from understudy.objective import Objective
from understudy.records import Shapes, Teacher
from understudy.training import checkpoint as checkpoints
from understudy.training.checkpoint import Checkpoint
from understudy.training.loop import Keeping, Player, Source, means, train
from understudy.training.numerics import Numerics
from understudy.training.optimizer import Optimizer, Recipe, lr_at
from understudy.training.step import Step

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long, how often, how exactly.

    patience: epochs without a better validation value before the run stops; None is never.
    checkpoint_seconds: least time between two checkpoints, which are written at an epoch's end; a long epoch is cut after 60 s.
    """

    steps: int
    seed: int
    optimizer: Recipe
    numerics: Numerics
    patience: int | None = None
    checkpoint_seconds: float = 5.0


@dataclass
class Fitted:
    """A trained model (best weights in place, in eval mode), its logged rows, what selected it, the terms with their last parameters."""

    module: nn.Module
    rows: Rows
    best: dict[str, Any]
    seconds: float
    resumed_from: int = 0
    notes: list[str] = field(default_factory=list)
    terms: Mapping[str, nn.Module] = field(default_factory=dict)


def fit(
    module: nn.Module,
    objectives: Sequence[Objective],
    source: Source,
    *,
    plan: Plan,
    shapes: Shapes,
    teacher: Teacher | None = None,
    companions: Sequence[Player] = (),
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    watch: str = "",
    higher_is_better: bool = True,
    folder: Path | None = None,
    identity: dict[str, Any] | None = None,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
    cancel: Callable[[], bool] = lambda: False,
) -> Fitted:
    """Train `module` and keep the weights with the best `watch` value of `validate` (the last ones where there is no validation).

    companions: players that learn along and take their step before the student's; what they are is theirs, what comes out is the student.
    With a `folder` the run resumes from its checkpoint to the same bytes; `identity` is what has to be equal for that.
    Raises Interrupted after a checkpoint when `cancel()` says so.
    """
    module = plan.numerics.place(module)
    with randomness.seeded(plan.seed, "terms"):  # else a projection would start from whatever was drawn before in this process
        step = Step(module, objectives, shapes, autocast=plan.numerics.autocast)
    player = Player(step, Optimizer(step, plan.optimizer, plan.steps), source, teacher, compiled=plan.numerics.compiled(step))
    keeper = _Keeper(step, player, companions, plan, validate, watch, higher_is_better, folder, identity or {}, on_row, cancel)
    first = keeper.resume()
    begun = time.perf_counter()
    try:
        if first < plan.steps and not keeper.stopped:
            with contextlib.suppress(_Enough), torch.random.fork_rng(devices=[]):
                train([*companions, player], first=first, steps=plan.steps, seed=plan.seed, after_step=keeper.after_step)
    finally:
        for one in (*companions, player):
            one.release()
    keeper.put_best()
    return Fitted(
        module.eval(),
        keeper.rows,
        keeper.best or {"step": keeper.done},
        time.perf_counter() - begun,
        first,
        keeper.notes,
        dict(step.terms.items()),
    )


class _Enough(Exception):
    """Early stop."""


class _Keeper:
    """What happens between steps: rows, validation, the best weights, checkpoints."""

    def __init__(
        self,
        step: Step,
        player: Player,
        companions: Sequence[Player],
        plan: Plan,
        validate: Callable[[nn.Module], dict[str, float]] | None,
        watch: str,
        higher_is_better: bool,
        folder: Path | None,
        identity: dict[str, Any],
        on_row: Callable[[dict[str, Any]], None],
        cancel: Callable[[], bool],
    ) -> None:
        self.step, self.player, self.plan, self.validate, self.watch = step, player, plan, validate, watch
        self.players = {"": player, **{f"companion-{index}/": one for index, one in enumerate(companions)}}
        self.sign = 1.0 if higher_is_better else -1.0
        self.path = folder / "checkpoint.safetensors" if folder else None
        self.identity, self.on_row, self.cancel = identity, on_row, cancel
        self.rows: Rows = []
        self.best: dict[str, Any] | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.done, self.stopped = 0, False
        self.notes: list[str] = []
        self.last_write = time.monotonic()

    def resume(self) -> int:
        found = checkpoints.read(self.path) if self.path else None
        if found is None:
            return 0
        changed = [name for name, value in self.identity.items() if found.meta.get("identity", {}).get(name) != value]
        if changed:
            self.notes.append("resumed under another " + ", ".join(changed) + ": the result is not bit-exact with an uninterrupted run")
        for prefix, player in self.players.items():
            player.step.load_state_dict(found.part(f"{prefix}step"))
            player.optimizer.restore(found.part(f"{prefix}optimizer"))
            if isinstance(player.teacher, nn.Module):
                player.teacher.load_state_dict(found.part(f"{prefix}teacher"))
            if isinstance(player.source, Keeping):
                player.source.restore(found.part(f"{prefix}source"))
            counts = found.meta["counts"].get(prefix, {})
            player.sums = {name: (found.tensors[f"{prefix}sums/{name}"], count) for name, count in counts.items()}
        self.rows, self.best, self.best_weights, self.done = found.rows, found.best, found.part("best"), found.step
        self.stopped = self._exhausted()
        return found.step

    def after_step(self, done: int) -> None:
        self.done = done
        if done % self.player.source.steps_per_epoch == 0 or done == self.plan.steps:
            self._close_epoch(done)
            if self._exhausted():
                self.stopped = True
                self.write()
                raise _Enough
            if time.monotonic() - self.last_write >= self.plan.checkpoint_seconds or done == self.plan.steps:
                self.write()
        elif time.monotonic() - self.last_write >= max(60.0, self.plan.checkpoint_seconds):
            self.write()
        if self.cancel():
            self.write()
            raise Interrupted("stopped after a checkpoint; the same command goes on from here")

    def _close_epoch(self, done: int) -> None:
        epoch = -(-done // self.player.source.steps_per_epoch)
        row: dict[str, Any] = {"epoch": epoch, "step": done, "lr": lr_at(done - 1, self.plan.steps, self.plan.optimizer)}
        for player in self.players.values():
            found = means(player.sums, f"at step {done}")
            row |= found if player is self.player else {f"{player.name}/{name}": value for name, value in found.items()}
            player.sums = {}
        if self.validate is not None:
            with self._averaged():
                self.step.eval()
                row |= {f"validation/{name}": value for name, value in self.validate(self.step.student).items()}
                self._compare(row)
                self.step.train()
        self.rows.append(row)
        self.on_row(row)

    def _compare(self, row: dict[str, Any]) -> None:
        value = row[f"validation/{self.watch}"]
        if self.best is None or self.sign * value > self.sign * self.best["value"]:
            self.best = {"epoch": row["epoch"], "step": row["step"], "value": value}
            self.best_weights = {name: tensor.detach().clone() for name, tensor in self.step.shipped().items()}

    def _exhausted(self) -> bool:
        if self.plan.patience is None or self.best is None or not self.rows:
            return False
        return self.rows[-1]["epoch"] - self.best["epoch"] >= self.plan.patience

    def _averaged(self) -> _Averaged:
        return _Averaged(self.player.optimizer)

    def put_best(self) -> None:
        if self.best_weights:
            self.step.restore(self.best_weights)
        elif self.player.optimizer.average is not None:
            self._averaged().__enter__()

    def write(self) -> None:
        if self.path is None:
            return
        tensors = {f"best/{name}": value for name, value in self.best_weights.items()}
        counts = {}
        for prefix, player in self.players.items():
            tensors |= {f"{prefix}step/{name}": value for name, value in player.step.state_dict().items()}
            tensors |= {f"{prefix}optimizer/{name}": value for name, value in player.optimizer.state().items()}
            if isinstance(player.teacher, nn.Module):
                tensors |= {f"{prefix}teacher/{name}": value for name, value in player.teacher.state_dict().items()}
            if isinstance(player.source, Keeping):
                tensors |= {f"{prefix}source/{name}": value for name, value in player.source.kept().items()}
            tensors |= {f"{prefix}sums/{name}": torch.as_tensor(value) for name, (value, _) in player.sums.items()}
            counts[prefix] = {name: float(count) for name, (_, count) in player.sums.items()}
        checkpoints.write(self.path, Checkpoint(self.done, tensors, self.rows, self.best, {"identity": self.identity, "counts": counts}))
        atomic.write_text(self.path.with_name("metrics.jsonl"), lines(self.rows))
        self.last_write = time.monotonic()


class _Averaged:
    """Inside the block the parameters are their moving average, where there is one."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    def __enter__(self) -> None:
        if self.optimizer.average is not None:
            self.kept = [parameter.detach().clone() for parameter in self.optimizer.parameters]
            self._put(self.optimizer.average)

    def __exit__(self, *_: object) -> None:
        if self.optimizer.average is not None:
            self._put(self.kept)

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.optimizer.parameters, values, strict=True):
                parameter.copy_(value)


def lines(rows: Rows) -> str:
    """Rows as JSON lines; the same rows give the same bytes."""
    return "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
