"""Inputs that are no examples: noise, and pictures made by a generator that learns what the teacher takes for its training data."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.randomness import generator
from understudy.records import Batch, Knowledge, LossTerms, Term
from understudy.students.taps import Taps
from understudy.teachers.peers import quiet
from understudy.training.step import Learner


class NoiseSource:
    """Inputs from a normal distribution of mean 0 and variance 1 in each number, which is how standardised inputs are spread.

    A batch is a function of seed and step; nothing is labelled. Where inputs are pictures, far less is passed on than by real ones.
    """

    def __init__(self, shape: tuple[int, ...], batch_size: int, steps_per_epoch: int, seed: int) -> None:
        self.shape, self.batch_size, self.steps_per_epoch, self.seed = shape, batch_size, steps_per_epoch, seed

    def next(self, step: int) -> Batch:
        """(B, *shape) float32."""
        draws = torch.randn(self.batch_size, *self.shape, generator=generator(self.seed, "noise", step))
        return unlabelled(draws)


class GeneratedSource:
    """What the generator makes of the noise of a step, without a gradient; `latents` gives the noise itself."""

    def __init__(self, maker: Maker, latent: int, batch_size: int, steps_per_epoch: int, seed: int) -> None:
        self.latents = NoiseSource((latent,), batch_size, steps_per_epoch, seed)
        self.steps_per_epoch = steps_per_epoch
        self._maker = maker

    @torch.no_grad()
    def next(self, step: int) -> Batch:
        """(B, *shape) float32, unlabelled."""
        return unlabelled(self._maker(self.latents.next(step).inputs))


def unlabelled(inputs: Tensor) -> Batch:
    """A batch of inputs that belong to no example: their ids mean nothing."""
    rows = len(inputs)
    return Batch(torch.arange(rows), 0, inputs, torch.full((rows,), -1))


class Maker(nn.Module):
    """(B, latent) noise -> (B, *shape) standardised inputs.

    Pictures: a quarter of their side, doubled twice by interpolation and 3 x 3 convolutions, as in the authors' generator of Chen et al.
    2019 (arXiv 1904.01186), section 3; other inputs: two hidden layers. The last batch norm has no weights, so that every channel has
    mean 0 and variance 1 over a batch, as standardised inputs have.
    """

    def __init__(self, latent: int, width: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        if len(shape) != 3:
            size = math.prod(shape)
            self.start: nn.Module = nn.Sequential(nn.Linear(latent, width), nn.BatchNorm1d(width), nn.ReLU())
            self.rest: nn.Module = nn.Sequential(
                nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, size), nn.BatchNorm1d(size, affine=False)
            )
            return
        channels, height, across = shape
        half = width // 2 or 1
        self.low = (math.ceil(height / 4), math.ceil(across / 4))
        self.start = nn.Sequential(
            nn.Linear(latent, width * self.low[0] * self.low[1]), nn.Unflatten(1, (width, *self.low)), nn.BatchNorm2d(width)
        )
        self.rest = nn.Sequential(
            nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, 1, 1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2),
            nn.Upsample(size=(height, across)), nn.Conv2d(width, half, 3, 1, 1), nn.BatchNorm2d(half), nn.LeakyReLU(0.2),
            nn.Conv2d(half, channels, 3, 1, 1), nn.Tanh(), nn.BatchNorm2d(channels, affine=False),
        )  # fmt: skip

    def forward(self, noise: Tensor) -> Tensor:
        """Inputs for a teacher."""
        made: Tensor = self.rest(self.start(noise))
        return made.reshape(len(noise), *self.shape)


class Generating(Learner):
    """A generator's step: its losses against a fixed teacher.

    one_hot, activation, information: Chen et al. 2019 (arXiv 1904.01186), eqs. 3 to 5: cross-entropy of the teacher with its own most
    probable class; minus the mean size of what goes into its last linear layer; minus the entropy of its mean prediction over the batch.
    statistics: Yin et al. 2020 (arXiv 1912.08795), eq. 4: distance of mean and variance of each batch norm's input to its running ones,
    here the mean over channels and layers. adversarial: Fang et al. 2019 (arXiv 1912.11006), eq. 6: minus the mean absolute difference
    of the student's logits to the teacher's. A weight of 0 leaves a loss out, as does a teacher without batch norm or linear layer.

    Deviations: information is in nats, where the authors' code takes the logarithm to base 10: a weight of 5 weighs about 2.3 times as
    much as theirs. statistics takes the mean of squares, where eq. 4 takes the norms themselves.
    """

    def __init__(self, maker: Maker, teacher: nn.Module, student: nn.Module, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.maker, self.weights = maker, {name: weight for name, weight in weights.items() if weight > 0}
        self._others = (teacher, student)  # a tuple, so that their weights are not this module's
        norms = [
            name for name, part in teacher.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats
        ]
        linear = [name for name, part in teacher.named_modules() if isinstance(part, nn.Linear) and name]
        if not norms:
            self.weights.pop("statistics", None)
        if not linear:
            self.weights.pop("activation", None)
        self._norms = [f"{name}:input" for name in norms] if "statistics" in self.weights else []
        self._last = f"{linear[-1]}:input" if "activation" in self.weights else ""
        wanted = [*self._norms, *([self._last] if self._last else [])]
        self._taps = Taps(teacher, wanted, "the teacher") if wanted else None

    def forward(self, batch: Batch, knowledge: Knowledge | None, progress: float = 0.0) -> LossTerms:
        """Terms of a batch of noise."""
        teacher, student = self._others
        made = self.maker(batch.inputs)
        logits = teacher(made).float()
        inside = self._taps.take() if self._taps is not None else {}
        mean = torch.softmax(logits, dim=-1).mean(0)
        losses = {
            "one_hot": lambda: F.cross_entropy(logits, logits.detach().argmax(-1)),
            "activation": lambda: -inside[self._last].abs().mean(),
            "information": lambda: (mean * mean.clamp(min=1e-12).log()).sum(),
            "statistics": lambda: self._apart(inside, teacher),
            "adversarial": lambda: -(self._answer(student, made) - logits).abs().mean(),
        }
        return {name: Term(losses[name](), 1.0, weight) for name, weight in self.weights.items()}

    def release(self) -> None:
        """Take the hooks off the teacher: the next student has the same one."""
        if self._taps is not None:
            self._taps.remove()

    @staticmethod
    def _answer(student: nn.Module, made: Tensor) -> Tensor:
        # With detached weights: the gradient goes through the student to what was made, and leaves none of the generator's in the student.
        fixed = {name: parameter.detach() for name, parameter in student.named_parameters()}
        with quiet(student):
            answer: Tensor = torch.func.functional_call(student, fixed, (made,))
        return answer.float()

    def _apart(self, inside: Mapping[str, Tensor], teacher: nn.Module) -> Tensor:
        modules, parts = dict(teacher.named_modules()), []
        for tap in self._norms:
            norm, given = modules[tap.removesuffix(":input")], inside[tap]
            axes = [axis for axis in range(given.ndim) if axis != 1]
            mean, variance = given.mean(axes), given.var(axes, unbiased=False)
            assert isinstance(norm.running_mean, Tensor) and isinstance(norm.running_var, Tensor)
            parts.append((mean - norm.running_mean).square().mean() + (variance - norm.running_var).square().mean())
        return torch.stack(parts).mean()
