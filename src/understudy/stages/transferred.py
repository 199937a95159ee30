"""Which training rows students see, and of which they see the label."""

from __future__ import annotations

import torch
from torch import Tensor

from understudy import kinds, sections
from understudy.data import Examples
from understudy.errors import RecipeError
from understudy.randomness import generator


def transfer_rows(wanted: sections.Transfer, examples: Examples, labels: Tensor, train: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """(rows that students may see, rows whose label is hidden from them, sentences for the report)."""
    notes: list[str] = []
    index = {name: number for number, name in enumerate(examples.classes)}
    for name in (*wanted.omit, *wanted.only):
        if name not in index:
            raise RecipeError(kinds.unknown("class in data.transfer", name, examples.classes))
    keep = torch.ones(len(train), dtype=torch.bool)
    if wanted.omit:
        keep &= ~torch.isin(labels[train], torch.tensor([index[name] for name in wanted.omit]))
        notes.append(f"The transfer set leaves out class {', '.join(wanted.omit)}: no student ever sees an example of it.")
    if wanted.only:
        keep &= torch.isin(labels[train], torch.tensor([index[name] for name in wanted.only]))
        notes.append(f"The transfer set holds only class {', '.join(wanted.only)}.")
    seen = train[keep]
    if wanted.examples < 1:
        seen = _share(seen, labels, wanted.examples)
        notes.append(f"Students see {len(seen):,} of {len(train):,} training examples (data.transfer.examples).")
    labelled = seen[labels[seen] >= 0]
    hidden = labelled[:0]
    if wanted.labels < 1:
        kept = _share(labelled, labels, wanted.labels)
        hidden = labelled[~torch.isin(labelled, kept)]
        notes.append(f"Students see the labels of {len(kept):,} of {len(seen):,} examples (data.transfer.labels).")
    unlabelled = len(seen) - len(labelled) + len(hidden)
    if unlabelled:
        notes.append(f"{unlabelled:,} training examples have no label for the students: distillation uses them, the control can't.")
    return seen, hidden, notes


def _share(rows: Tensor, labels: Tensor, share: float) -> Tensor:
    """A stratified part of the rows, at least one of each class, the same for the same data; larger shares hold the smaller ones."""
    parts = []
    for label in labels[rows].unique():
        members = rows[labels[rows] == label]
        order = members[torch.randperm(len(members), generator=generator("transfer", int(label)))]
        parts.append(order[: max(1, round(share * len(members)))])
    return torch.cat(parts).sort().values
