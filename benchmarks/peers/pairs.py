"""Teacher-student pairs, their data, and the bench side of a worker process. Needs torch alone: peers' environments import it too.

A worker is one process for one row of the table. It reads a pair from stdin, forks (so that imports are paid once), builds the row,
takes one unit that does not count, then answers every `go` with what a unit of training took: seconds, CPU seconds, examples.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCH, TEMPERATURE, LABELS, LR, MOMENTUM, CLASSES = 128, 4.0, 0.1, 0.01, 0.9, 10
Unit = Callable[[], "int | tuple[float, float, int]"]
"""Takes some training; returns how many examples, or (seconds, CPU seconds, examples) where only a part of the call counts."""


@dataclass(frozen=True)
class Pair:
    """shape: of an example. slow, fast: examples of an epoch for rows with the teacher in the loop, and for the others.
    epochs: of a unit, alike. typical: steps of a usual run, from which our trial predicts its time."""

    shape: tuple[int, ...]
    slow: int
    fast: int
    epochs: tuple[int, int]
    typical: int = 14_000


PAIRS = {
    "tiny-28": Pair((1, 28, 28), 8192, 8192, (3, 10)),
    "mlp-28": Pair((1, 28, 28), 4096, 8192, (1, 4)),
    "cnn-28": Pair((1, 28, 28), 1024, 4096, (1, 1)),
    "resnet-32": Pair((3, 32, 32), 256, 1024, (1, 1)),
}


class Net(nn.Module):
    """A body and a linear head, as every model of the package has."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(width, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def mlp(*widths: int) -> Net:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return Net(nn.Sequential(*layers), widths[-1])


def cnn(first: int, second: int, hidden: int = 0) -> Net:
    def stage(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]

    last = [nn.Linear(second * 49, hidden), nn.ReLU()] if hidden else []
    return Net(nn.Sequential(*stage(1, first), *stage(first, second), nn.Flatten(), *last), hidden or second * 49)


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.short = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.short(x))


def resnet(blocks: int) -> Net:
    """ResNet-(6 blocks + 2) of the CIFAR type, 16, 32 and 64 channels."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    width = 16
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        for number in range(blocks):
            layers.append(Block(width, outputs, stride if number == 0 else 1))
            width = outputs
    return Net(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), 64)


MODELS: dict[str, tuple[Callable[[], Net], Callable[[], Net]]] = {
    "tiny-28": (lambda: mlp(784, 256), lambda: mlp(784, 32)),
    "mlp-28": (lambda: mlp(784, 1200, 1200), lambda: mlp(784, 256)),
    "cnn-28": (lambda: cnn(32, 48, 64), lambda: cnn(8, 16)),
    "resnet-32": (lambda: resnet(9), lambda: resnet(1)),
}


def teacher(pair: str) -> Net:
    torch.manual_seed(1)
    return MODELS[pair][0]().eval().requires_grad_(False)


def student(pair: str) -> Net:
    torch.manual_seed(2)
    return MODELS[pair][1]().train()


def examples(pair: str) -> TensorDataset:
    """Random inputs and labels: a step's time does not depend on their values."""
    draw = torch.Generator().manual_seed(0)
    count = PAIRS[pair].slow
    return TensorDataset(torch.randn(count, *PAIRS[pair].shape, generator=draw), torch.randint(0, CLASSES, (count,), generator=draw))


def loader(pair: str) -> DataLoader:
    return DataLoader(examples(pair), batch_size=BATCH, shuffle=True, drop_last=True)


def loss_of(logits: Tensor, answer: Tensor, labels: Tensor) -> Tensor:
    """Hinton's loss with the labels' cross-entropy beside it; `answer` are the teacher's logits."""
    soft = F.kl_div(F.log_softmax(logits / TEMPERATURE, 1), F.log_softmax(answer / TEMPERATURE, 1), reduction="batchmean", log_target=True)
    return LABELS * F.cross_entropy(logits, labels) + (1 - LABELS) * TEMPERATURE**2 * soft


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)


def hand(pair: str) -> Unit:
    """What people write: a DataLoader, the teacher asked at every step, float32, eager."""
    asked, learner, batches = teacher(pair), student(pair), loader(pair)
    optimizer = sgd(learner)

    def unit() -> int:
        seen = 0
        for _ in range(PAIRS[pair].epochs[0]):
            for inputs, labels in batches:
                with torch.inference_mode():
                    answer = asked(inputs)
                loss = loss_of(learner(inputs), answer, labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                seen += len(inputs)
        return seen

    return unit


def serve(build: Callable[[dict], Unit]) -> None:
    """Answer the bench on stdin and stdout until stdin closes; see the module's text. What `build` prints goes to stderr.

    A unit may have `facts` to tell, and a `main` that needs the process's first thread while the unit is asked from another one.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps({"started": True}), file=answers, flush=True)
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            _child(build, json.loads(line), answers)
        os.waitpid(child, 0)
        print(json.dumps({"ended": True}), file=answers, flush=True)


def _child(build: Callable[[dict], Unit], order: dict, answers: TextIO) -> NoReturn:
    def say(value: dict) -> None:
        print(json.dumps(value), file=answers, flush=True)

    def talk(unit: Unit) -> None:
        timed(unit)
        say({"ready": True, **getattr(unit, "facts", {})})
        while sys.stdin.readline().strip() == "go":
            say(timed(unit))

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            say({"error": f"{type(error).__name__}: {str(error)[:300]}"})
        os._exit(0)

    def work() -> None:
        unit = build(order)
        main = getattr(unit, "main", None)
        if main is None:
            talk(unit)
        else:  # glibc gives threads other than the first a heap that is slower for large blocks, so that one belongs to the training
            threading.Thread(target=guarded, args=(lambda: talk(unit),), daemon=True).start()
            main()

    guarded(work)


def timed(unit: Unit) -> dict:
    wall, cpu = time.perf_counter(), time.process_time()
    got = unit()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    wall, cpu, seen = got if isinstance(got, tuple) else (wall, cpu, got)
    return {"seconds": wall, "cpu_seconds": cpu, "examples": seen}


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(lambda order: hand(order["pair"]))
