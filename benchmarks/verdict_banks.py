"""Banks of real runs on which the verdict is calibrated, and how often it errs beside a bootstrap over test items alone.

    python benchmarks/verdict_banks.py make      trains every run again and writes benchmarks/banks/*.npz (about a minute, one thread)
    python benchmarks/verdict_banks.py report    reads the banks and prints the rates

A bank holds which test rows each run got right, a bit a row: `control` (40 runs) and `distilled` (30 runs), packed along rows,
and `rows`. Runs differ in their seed (start and order of batches) only. The student is an MLP 64 -> 16 -> 10 on scikit-learn's digits,
half of them kept for test. Two regimes: `digits` trains on the other half; `digits_few` on 100 rows of it, where seeds differ more.
The teacher is the mean of 3 wider MLPs trained on all of that half; soft targets at T = 4 have weight 0.9.
The loop is written out here so that the calibration does not depend on the package that it calibrates.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

BANKS = Path(__file__).parent / "banks"
CONTROLS, DISTILLED, TEMPERATURE, SOFT = 40, 30, 4.0, 0.9


def make() -> None:
    import torch
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    torch.set_num_threads(1)
    inputs, labels = load_digits(return_X_y=True)
    split = train_test_split(inputs / 16, labels, test_size=0.5, random_state=0, stratify=labels)
    x_train, x_test = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
    y_train, y_test = (torch.tensor(part) for part in split[2:])
    teachers = [train(x_train, y_train, None, hidden=256, epochs=60, seed=1000 + k) for k in range(3)]
    with torch.no_grad():
        soft = torch.stack([(model(x_train) / TEMPERATURE).softmax(-1) for model in teachers]).mean(0)
        best = (torch.stack([model(x_test).softmax(-1) for model in teachers]).mean(0).argmax(-1) == y_test).float().mean()
    print(f"teacher {best:.4f} on {len(y_test)} rows")
    few = torch.tensor(np.random.default_rng(0).permutation(len(y_train))[:100])
    for name, rows, epochs in (("digits", torch.arange(len(y_train)), 60), ("digits_few", few, 300)):
        arms = {"control": [], "distilled": []}
        for arm, runs in (("control", CONTROLS), ("distilled", DISTILLED)):
            for k in range(runs):
                targets = soft[rows] if arm == "distilled" else None
                seed = k if arm == "control" else 100 + k
                student = train(x_train[rows], y_train[rows], targets, hidden=16, epochs=epochs, seed=seed)
                with torch.no_grad():
                    arms[arm].append((student(x_test).argmax(-1) == y_test).numpy())
        packed = {arm: np.packbits(np.stack(right), axis=1) for arm, right in arms.items()}
        BANKS.mkdir(exist_ok=True)
        np.savez_compressed(BANKS / f"{name}.npz", rows=np.int64(len(y_test)), **packed)
        for arm, right in arms.items():
            means = np.stack(right).mean(1)
            print(f"{name} {arm}: {means.mean():.4f}, sd over seeds {means.std(ddof=1):.4f}")


def train(inputs, labels, soft, hidden: int, epochs: int, seed: int):
    """A small MLP by AdamW with a cosine rate; hard labels, plus soft targets where they are given (Hinton, Vinyals, Dean 2015)."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy, kl_div

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(inputs.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, 10))
    steps = epochs * -(-len(labels) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(64):
            logits = model(inputs[rows])
            loss = cross_entropy(logits, labels[rows])
            if soft is not None:
                matched = kl_div((logits / TEMPERATURE).log_softmax(-1), soft[rows], reduction="batchmean") * TEMPERATURE**2
                loss = (1 - SOFT) * loss + SOFT * matched
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """(control (40, n), distilled (30, n)) as 0.0 and 1.0."""
    with np.load(BANKS / f"{name}.npz", allow_pickle=False) as bank:
        rows = int(bank["rows"])
        control, distilled = (np.unpackbits(bank[arm], axis=1)[:, :rows].astype(np.float64) for arm in ("control", "distilled"))
    return control, distilled


def null_splits(control: np.ndarray, draws: int, seeds: int, seed: int):
    """`draws` pairs of disjoint sets of control runs: no difference is there to be found."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        chosen = rng.permutation(len(control))[: 2 * seeds]
        yield control[chosen[:seeds]], control[chosen[seeds:]]


def draws_of(control: np.ndarray, distilled: np.ndarray, draws: int, seeds: int, items: int, seed: int):
    """`draws` small experiments out of a bank: seeds without replacement, items with (so that the bank is a population of items)."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        rows = rng.integers(control.shape[1], size=items)
        yield (control[rng.choice(len(control), seeds, replace=False)][:, rows],
               distilled[rng.choice(len(distilled), seeds, replace=False)][:, rows])


def report() -> None:
    from understudy.evaluation.compare import verdict

    def bootstrap(control: np.ndarray, distilled: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
        gain = distilled.mean(axis=0) - control.mean(axis=0)
        means = gain[rng.integers(len(gain), size=(1000, len(gain)))].mean(axis=1)
        return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))

    for name in ("digits", "digits_few"):
        control, distilled = load(name)
        rng = np.random.default_rng(0)
        words, naive = [], []
        for one, other in null_splits(control, 1000, 3, 0):
            words.append(verdict(one, other).word)
            naive.append(bootstrap(one, other, rng)[0] > 0)
        truth = distilled.mean() - control[:30].mean()
        covered, seen, naive_covered = [], [], []
        for one, other in draws_of(control[:30], distilled, 2000, 3, 300, 1):
            found = verdict(one, other)
            covered.append(found.ci95[0] <= truth <= found.ci95[1])
            seen.append(found.word)
            low, high = bootstrap(one, other, rng)
            naive_covered.append(low <= truth <= high)
        print(f"{name}: equal arms called helps {words.count('helps') / 1000:.1%}, hurts {words.count('hurts') / 1000:.1%}; "
              f"items-only bootstrap helps {np.mean(naive):.1%}")
        print(f"{name}: difference {truth:+.4f} covered {np.mean(covered):.1%}, helps {seen.count('helps') / 2000:.1%}, "
              f"hurts {seen.count('hurts') / 2000:.1%}; items-only bootstrap covers {np.mean(naive_covered):.1%}")


if __name__ == "__main__":
    if sys.argv[1:] not in (["make"], ["report"]):
        sys.exit(__doc__)
    make() if sys.argv[1] == "make" else report()
