"""What taps and projections cost beyond their own arithmetic: `python benchmarks/taps.py [--out FILE]`.

One training step with a term on layers, three ways: without any layer term; as a user of torch would write it by hand (the model's forward
pass cut open, the same 1 x 1 convolution and the same formula); and through `Step` with hooks. Rounds are interleaved; figures are ratios
of medians, one thread. `overhead` is (ours - by hand) / by hand. CRD's bank: bytes and the share of a step that it takes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from understudy import kinds
from understudy.objectives.features import Hint
from understudy.objectives.labels import CrossEntropy
from understudy.objectives.relations import CRD, SimilarityPreserving
from understudy.records import Batch, Knowledge, Shapes
from understudy.stages.machine import hardware
from understudy.training.step import Step

SHAPE, CLASSES, EXAMPLES = (3, 32, 32), 10, 10_000
TAPS = {"layer3": "layer3"}


def student() -> nn.Module:
    torch.manual_seed(0)
    return kinds.configure("models", "resnet", {"depth": 8}).build(SHAPE, CLASSES).train()


def cut_open(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ResNet's forward pass by hand: (logits, last map)."""
    x = F.relu(model.bn1(model.conv1(x)))
    maps = model.layer3(model.layer2(model.layer1(x)))
    return model.linear(maps.mean((2, 3))), maps


def moved(parameters: list[nn.Parameter], loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def ways(batch_size: int) -> dict[str, Callable[[], None]]:
    draw = torch.Generator().manual_seed(1)
    inputs = torch.randn(batch_size, *SHAPE, generator=draw)
    maps, vectors = torch.randn(batch_size, 64, 8, 8, generator=draw), torch.randn(batch_size, 64, generator=draw)
    labels = torch.randint(0, CLASSES, (batch_size,), generator=draw)
    batch = Batch(torch.arange(batch_size), 0, inputs, labels, labelled=True)
    knowledge = Knowledge(features={"layer3": maps, "linear:input": vectors})
    shapes = Shapes(CLASSES, EXAMPLES, {"layer3": (64, 8, 8), "linear:input": (64,)}, {"layer3": (64, 8, 8), "linear:input": (64,)})

    def through(*objectives) -> Callable[[], None]:
        step = Step(student(), [CrossEntropy(), *objectives], shapes).train()

        def loss() -> torch.Tensor:
            terms = step(batch, knowledge, 0.0)
            total = sum(term.sum * (term.weight / term.count) for term in terms.values())
            return total

        inner = moved(list(step.parameters()), loss)

        def both() -> None:
            inner()
            step.after_step()

        return both

    bare, hinted, similar = student(), student(), student()
    regressor = nn.Conv2d(64, 64, 1)

    def by_hand_hint() -> torch.Tensor:
        logits, own = cut_open(hinted, inputs)
        return F.cross_entropy(logits, labels) + (regressor(own) - maps).square().mean()

    def by_hand_similar() -> torch.Tensor:
        logits, own = cut_open(similar, inputs)
        grams = [F.normalize(rows.flatten(1) @ rows.flatten(1).T, dim=1) for rows in (own, maps)]
        return F.cross_entropy(logits, labels) + (grams[0] - grams[1]).square().mean()

    return {
        "labels alone": moved(list(bare.parameters()), lambda: F.cross_entropy(bare(inputs), labels)),
        "labels alone, ours": through(),
        "Hint by hand": moved([*hinted.parameters(), *regressor.parameters()], by_hand_hint),
        "Hint, ours": through(Hint(layers=TAPS)),
        "SP by hand": moved(list(similar.parameters()), by_hand_similar),
        "SP, ours": through(SimilarityPreserving(layers=TAPS)),
        "CRD, ours": through(CRD(layers={"linear:input": "linear:input"})),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {"machine": hardware()["words"], "threads": 1, "rounds": options.rounds, "batches": {}}
    for batch_size in (16, 64):
        steps = ways(batch_size)
        seconds = {name: [] for name in steps}
        for index in range(options.rounds + 3):
            for name, step in steps.items():
                begun = time.perf_counter()
                step()
                if index >= 3:
                    seconds[name].append(time.perf_counter() - begun)
        median = {name: statistics.median(one) for name, one in seconds.items()}
        paired = {
            name: statistics.median(a / b for a, b in zip(seconds[f"{name}, ours"], seconds[other], strict=True)) - 1
            for name, other in (("labels alone", "labels alone"), ("Hint", "Hint by hand"), ("SP", "SP by hand"))
        }
        found["batches"][batch_size] = {
            "milliseconds": {name: round(1e3 * one, 2) for name, one in median.items()},
            "overhead": {name: round(one, 4) for name, one in paired.items()},
            "CRD against labels alone": round(median["CRD, ours"] / median["labels alone, ours"], 3),
        }
    bank = CRD(layers={"a": "b"}).build(Shapes(CLASSES, EXAMPLES, {"a": (64,)}, {"b": (64,)}))
    found["CRD bank, bytes for 10,000 examples"] = sum(one.numel() * one.element_size() for one in bank.buffers())
    text = json.dumps(found, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
