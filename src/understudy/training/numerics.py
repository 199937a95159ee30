"""Precision, memory format and compile: settled once by a short measured trial, recorded, and used by all arms, seeds and resumes.

No setting always wins: bfloat16 loses on tiny MLPs (casts), channels_last wins on conv nets, torch.compile gains on a ResNet and halves
the speed of a small net with max pooling. So `auto` is measured on the run's own step, and bfloat16 also has to agree with float32.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from understudy.records import LossTerms, total

WORTH_A_TRIAL = 10.0
"""Seconds of predicted training below which `auto` is float32, contiguous, eager: the trial would cost more than it gains."""
LONG = 0.5
"""Seconds of a step from which one says enough."""
WORTH_COMPILING = 300.0
"""Seconds of predicted training above which torch.compile is tried, its own cost counted."""
MARGIN = 0.95
"""A setting must take less than this share of the time to be taken: timings are noisy."""


@dataclass(frozen=True)
class Numerics:
    """How a step is computed. The output layer and the loss are in float32 in every case."""

    precision: Literal["float32", "bfloat16"] = "float32"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    compile: bool = False

    @property
    def autocast(self) -> bool:
        """Whether the body runs in bfloat16."""
        return self.precision == "bfloat16"

    @property
    def channels_last(self) -> bool:
        """Whether images and conv weights lie channel-last in memory."""
        return self.memory_format == "channels_last"

    def place(self, module: nn.Module) -> nn.Module:
        """The module in this memory format."""
        return module.to(memory_format=torch.channels_last) if self.channels_last else module  # type: ignore[call-overload]

    def compiled(self, step: nn.Module) -> Callable[..., LossTerms] | None:
        """The compiled step, or None for eager."""
        return torch.compile(step) if self.compile else None


@dataclass(frozen=True)
class Trial:
    """What was settled and what was measured for it: seconds a step by setting, and bfloat16's distance from float32."""

    chosen: Numerics
    seconds_per_step: dict[str, float]
    predicted_seconds: float
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For provenance."""
        return asdict(self)


def settle(
    run: Callable[[Numerics, int], Callable[[], torch.Tensor]],
    *,
    precision: str,
    memory_format: str,
    compile: str | bool,
    convolves: bool,
    ragged: bool,
    steps: int,
) -> Trial:
    """Choose the fastest numerics for `steps` steps out of what the three settings leave open.

    run(numerics, seed) gives a function that takes one training step from the same start and returns its loss terms' total.
    ragged: batches differ in shape, and every new shape would be compiled anew: torch.compile is used only where it is asked for.
    """
    formats: list[Any] = (
        ["channels_last", "contiguous"]
        if memory_format == "auto" and convolves
        else ["contiguous" if memory_format == "auto" else memory_format]
    )
    precisions: list[Any] = ["float32", "bfloat16"] if precision == "auto" else [precision]
    base = Numerics(precisions[0], formats[-1])
    seconds = {_name(base): _seconds(run(base, 0), 0.1)}
    predicted = steps * seconds[_name(base)]
    notes: list[str] = []
    chosen = base
    options = [Numerics(p, f) for p, f in itertools.product(precisions, formats)]
    if len(options) > 1 and predicted > WORTH_A_TRIAL:
        steppers = {option: run(option, 0) for option in options}
        reference = float(run(base, 0)())
        for option in list(steppers):
            if option.autocast and (apart := abs(float(run(option, 0)()) - reference) / max(1e-6, abs(reference))) > 0.02:
                notes.append(f"{_name(option)} left out: its first loss differs from float32 by {apart:.1%}")
                del steppers[option]
        rounds = [{option: _seconds(stepper, 0.12) for option, stepper in steppers.items()} for _ in range(3)]
        measured = {option: statistics.median(each[option] for each in rounds) for option in steppers}
        seconds = {_name(option): value for option, value in measured.items()}
        fastest = min(measured, key=lambda option: measured[option])
        chosen = fastest if measured[fastest] < MARGIN * measured[base] else base
        predicted = steps * measured[chosen]
    elif precision == "auto" or memory_format == "auto":
        notes.append(f"no trial: the run is predicted to take {predicted:.1f} s")
    if compile is True:
        chosen = replace(chosen, compile=True)
    elif compile == "auto" and predicted > WORTH_COMPILING and ragged:
        notes.append("torch.compile not tried: batches of text differ in shape")
    elif compile == "auto" and predicted > WORTH_COMPILING:
        chosen, predicted = _try_compile(run, chosen, predicted, steps, seconds, notes)
    return Trial(chosen, seconds, predicted, tuple(notes))


def _try_compile(
    run: Callable[[Numerics, int], Callable[[], torch.Tensor]],
    eager: Numerics,
    predicted: float,
    steps: int,
    seconds: dict[str, float],
    notes: list[str],
) -> tuple[Numerics, float]:
    compiled = replace(eager, compile=True)
    begun = time.perf_counter()
    try:
        stepper = run(compiled, 0)
        stepper()
    except Exception as error:
        notes.append(f"torch.compile left out: {type(error).__name__}")
        return eager, predicted
    cost = time.perf_counter() - begun
    seconds[_name(compiled)] = _seconds(stepper, 0.3)
    whole = cost + steps * seconds[_name(compiled)]
    notes.append(f"torch.compile took {cost:.1f} s to start")
    return (compiled, whole) if whole < MARGIN * predicted else (eager, predicted)


def _seconds(step: Callable[[], torch.Tensor], least: float) -> float:
    """Median seconds of a step, over at least three steps and `least` seconds, after two that don't count; of steps that take long fewer,
    as they are told apart by one, and a trial must not cost a tenth of the run."""

    def timed() -> float:
        begun = time.perf_counter()
        step()
        return time.perf_counter() - begun

    if timed() < LONG:
        step()
    times = [timed()]
    while sum(times) < least or (len(times) < 3 and sum(times) < LONG):
        times.append(timed())
    return statistics.median(times)


def _name(numerics: Numerics) -> str:
    return f"{numerics.precision}, {numerics.memory_format}, {'compiled' if numerics.compile else 'eager'}"


def one_step(player: Any, steps: int) -> Callable[[], torch.Tensor]:
    """A function that takes the player's next training step and returns the loss it saw."""
    counter = itertools.count()
    player.step.train()

    def take() -> torch.Tensor:
        step = next(counter) % steps
        batch = player.source.next(step)
        knowledge = player.teacher.teach(batch) if player.teacher is not None else None
        loss = total(player.forward(batch, knowledge, step / steps))
        loss.backward()
        player.optimizer.step(step)
        return loss.detach()

    return take
