"""Texts that the figures of docs/language.md and docs/ship.md were made with, from the data sets as they are published.

    python benchmarks/texts.py DATA FOLDER

DATA holds sms_spam/, stsb_open/, sst2/, subj/ and clinc150/. Writes, the same every time:
more.txt   messages, captions and headlines, films: 19,743 texts whose labels are dropped, to teach intents with besides
films.txt  10,015 sentences of reviews and plots (subj) without their labels, to teach sentiment with besides
sst2.tsv   SST-2's sentences with the columns text, label and split
few.json   CLINC150 with the first ten training texts and five validation texts of each intent
rest.txt   its other 13,500 training texts without their labels
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections import Counter
from pathlib import Path

PARTS = {"train": "train", "dev": "validation", "test": "test"}


def rows(path: Path) -> list[list[str]]:
    """The cells of a tab-separated file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.split("\t") for line in file.read().splitlines()]


def more(data: Path) -> list[str]:
    """Every text once."""
    draw = random.Random(0)
    found = [row[-1] for row in rows(data / "sms_spam" / "SMSSpamCollection.gz")]
    found += [text for row in rows(data / "stsb_open" / "sts-train.tsv.gz") for text in row[5:7]]
    for path, count in ((data / "sst2" / "train.tsv.gz", 5000), (data / "subj" / "subj.tsv.gz", 4000)):
        found += draw.sample([row[0] for row in rows(path)], count)
    return once(found)


def films(data: Path) -> list[str]:
    """Sentences of reviews and of plots."""
    return once([row[0] for row in rows(data / "subj" / "subj.tsv.gz")])


def sst2(data: Path) -> list[str]:
    """Lines of a table."""
    parts = {part: rows(data / "sst2" / f"{name}.tsv.gz") for name, part in PARTS.items()}
    return ["text\tlabel\tsplit", *(f"{row[0].strip()}\t{row[1]}\t{part}" for part, found in parts.items() for row in found if row[0])]


def few(data: Path) -> list[str]:
    """The only line of a file as CLINC150's."""
    found = intents(data)
    return [json.dumps({**found, "train": firsts(found["train"], 10)[0], "val": firsts(found["val"], 5)[0]})]


def rest(data: Path) -> list[str]:
    """The training texts that `few` left out."""
    return [text for text, _ in firsts(intents(data)["train"], 10)[1]]


def intents(data: Path) -> dict[str, list[list[str]]]:
    """Part -> (text, intent) of CLINC150."""
    with gzip.open(data / "clinc150" / "data_full.json.gz", "rt", encoding="utf-8") as file:
        found: dict[str, list[list[str]]] = json.load(file)
    return found


def firsts(pairs: list[list[str]], each: int) -> tuple[list[list[str]], list[list[str]]]:
    """(the first `each` of every label, the others), in their order."""
    parts: tuple[list[list[str]], list[list[str]]] = ([], [])
    seen: Counter[str] = Counter()
    for text, label in pairs:
        parts[seen[label] >= each].append([text, label])
        seen[label] += 1
    return parts


def once(texts: list[str]) -> list[str]:
    """Those that say something, each once."""
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))


if __name__ == "__main__":
    for name, lines in {"more.txt": more, "films.txt": films, "sst2.tsv": sst2, "few.json": few, "rest.txt": rest}.items():
        Path(sys.argv[2], name).write_text("\n".join(lines(Path(sys.argv[1]))) + "\n", encoding="utf-8")
