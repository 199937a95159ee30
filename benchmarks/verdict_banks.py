"""Banks of real runs on which the verdict is calibrated, and how often it errs beside a bootstrap over test items alone.

    python benchmarks/verdict_banks.py make      trains every run again and writes benchmarks/banks/digits*.npz (about a minute, one thread)
    python benchmarks/verdict_banks.py text      the same for text.npz (about a quarter of an hour)
    python benchmarks/verdict_banks.py report    reads the banks and prints the rates

A bank holds which test rows each run got right, a bit a row: `control` (40 runs) and `distilled` (30 runs), packed along rows,
and `rows`. Runs differ in their seed (start and order of batches) only. The student is an MLP 64 -> 16 -> 10 on scikit-learn's digits,
half of them kept for test. Two regimes: `digits` trains on the other half; `digits_few` on 100 rows of it, where seeds differ more.
The teacher is the mean of 3 wider MLPs trained on all of that half; soft targets at T = 4 have weight 0.9.
`text` holds bits of whole documents, (40, 200) and (30, 200), and their bytes, `sizes`: files of the standard library, 400 to 20,000 bytes
of each, told byte by byte from the 8 before by an MLP; the teacher is wider and read four times as much.
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


def make_text() -> None:
    import glob
    import sysconfig

    import torch
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(1)
    library = sysconfig.get_path("stdlib")
    files = [name for name in sorted(glob.glob(f"{library}/**/*.py", recursive=True))
             if not any(part in name for part in ("site-packages", "/test", "/idlelib", "lib2to3"))]
    texts = [np.frombuffer(Path(name).read_bytes()[:20_000], np.uint8) for name in files if Path(name).stat().st_size >= 400]
    texts = [texts[at] for at in np.random.default_rng(0).permutation(len(texts))]
    held, rest = [windows(text) for text in texts[:200]], np.concatenate([windows(text) for text in texts[200:]])[:400_000]
    read = torch.tensor(rest)
    few = read[:100_000]

    def bits(model) -> np.ndarray:
        rows = [torch.tensor(one) for one in held]
        with torch.no_grad():
            return np.array([float(cross_entropy(model(one[:, :-1]), one[:, -1], reduction="sum")) for one in rows]) / np.log(2)

    teacher = train_text(read, None, 24, 512, epochs=4, rate=2e-3, seed=999)
    with torch.no_grad():
        soft = torch.cat([teacher(part[:, :-1]).softmax(-1) for part in few.split(8192)])
    print(f"teacher {bits(teacher).sum() / sum(map(len, held)):.4f} bits per byte")
    arms = {"control": [bits(train_text(few, None, 12, 64, epochs=3, rate=5e-3, seed=k)) for k in range(CONTROLS)],
            "distilled": [bits(train_text(few, soft, 12, 64, epochs=3, rate=5e-3, seed=100 + k)) for k in range(DISTILLED)]}
    sizes = np.array([len(one) for one in held])
    np.savez_compressed(BANKS / "text.npz", sizes=sizes, **{arm: np.stack(runs).astype(np.float32) for arm, runs in arms.items()})
    for arm, runs in arms.items():
        found = np.stack(runs).sum(1) / sizes.sum()
        print(f"text {arm}: {found.mean():.4f} bits per byte, sd over seeds {found.std(ddof=1):.4f}")


def windows(text: np.ndarray) -> np.ndarray:
    """(bytes, 9): the 8 before each byte, 256 where there is none, and the byte."""
    return np.lib.stride_tricks.sliding_window_view(np.concatenate([np.full(8, 256), text.astype(np.int64)]), 9).copy()


def train_text(rows, soft, width: int, hidden: int, epochs: int, rate: float, seed: int):
    """What byte comes next, by AdamW with a cosine rate; labels, plus the teacher's answers where they are given."""
    import torch
    from torch import nn
    from torch.nn.functional import cross_entropy, kl_div

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(257, width), nn.Flatten(), nn.Linear(8 * width, hidden), nn.ReLU(), nn.Linear(hidden, 256))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(rows) // 512))
    for _ in range(epochs):
        for some in torch.randperm(len(rows)).split(512)[: len(rows) // 512]:
            logits = model(rows[some, :-1])
            loss = cross_entropy(logits, rows[some, -1])
            if soft is not None:
                loss = (1 - SOFT) * loss + SOFT * kl_div(logits.log_softmax(-1), soft[some], reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model


def load_text() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(control (40, 200), distilled (30, 200)) in bits, bytes (200,)."""
    with np.load(BANKS / "text.npz", allow_pickle=False) as bank:
        control, distilled, sizes = (bank[name].astype(np.float64) for name in ("control", "distilled", "sizes"))
    return control, distilled, sizes


def per_byte(bits: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(S, n) jackknife pseudo-values of bits over bytes."""
    total, count = bits.sum(1, keepdims=True), bits.shape[1]
    return count * total / sizes.sum() - (count - 1) * (total - bits) / (sizes.sum() - sizes)


def text_draws(equal: bool, documents: int, draws: int, seed: int):
    """`draws` experiments of 3 + 3 seeds and so many documents, drawn with replacement; `equal`: both arms out of the control runs."""
    control, distilled, sizes = load_text()
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        some, chosen = rng.integers(len(sizes), size=documents), rng.permutation(len(control))
        other = control[chosen[3:6]] if equal else distilled[rng.choice(len(distilled), 3, replace=False)]
        yield per_byte(control[chosen[:3]][:, some], sizes[some]), per_byte(other[:, some], sizes[some])


def text_rates(documents: int) -> dict[str, float]:
    """Shares of 1,000 experiments: equal arms called helps or hurts, the interval covers, and a real gain is seen."""
    from understudy.evaluation.compare import verdict

    control, distilled, sizes = load_text()
    truth = (distilled.mean(0).sum() - control.mean(0).sum()) / sizes.sum()
    equal = [verdict(*arms, higher_is_better=False, guard=None).word for arms in text_draws(True, documents, 1000, 0)]
    found = [verdict(*arms, higher_is_better=False, guard=None) for arms in text_draws(False, documents, 1000, 1)]
    return {"difference": truth, "helps": equal.count("helps") / 1000, "hurts": equal.count("hurts") / 1000,
            "covered": sum(one.ci95[0] <= truth <= one.ci95[1] for one in found) / 1000,
            "seen": sum(one.word == "helps" for one in found) / 1000}


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
    for documents in (10, 20, 44, 74, 200):
        rates = text_rates(documents)
        print(f"text, {documents} documents: equal arms called helps {rates['helps']:.1%}, hurts {rates['hurts']:.1%}; difference "
              f"{rates['difference']:+.3f} covered {rates['covered']:.1%}, helps {rates['seen']:.1%}")


VERBS = {"make": make, "text": make_text, "report": report}

if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in VERBS:
        sys.exit(__doc__)
    VERBS[sys.argv[1]]()
