"""What a store holds and whether it is sound, for people. No torch here."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from understudy.errors import DataError
from understudy.store import shards
from understudy.store.manifest import Manifest
from understudy.store.schema import HEADER_FILE, PARTS_FOLDER, Header, part_names, read_header, row_bytes


class Fault(NamedTuple):
    """Something in a store that can't be trusted; `rows` is how many are asked again when the recording goes on."""

    part: str
    file: str
    problem: str
    rows: int


def describe(folder: str | Path) -> dict[str, Any]:
    """The facts of a store as JSON-safe values. Hashes are not compared: see `verify`.

    rows: of tokens, positions. tail_mass: mean probability outside the kept entries by temperature, for stores of top-k rows and tokens.
    tokens: for such a store, its sequences and, as means over the positions, `kl`: KL(teacher || what is read back) in nats at T = 1 with
    the tail spread evenly, and `loss`: the teacher's own on the text; `worst`: the sequence of the largest KL. Else None.

    Raises DataError where there is no store, or a manifest is damaged.
    """
    folder = Path(folder)
    header, _ = read_header(folder)
    views: Counter[int] = Counter()
    seen: set[tuple[str, int]] = set()
    quarantined: list[tuple[str, int]] = []
    parts: dict[str, dict[str, int]] = {}
    tails = []
    runs: list[tuple[str, int, float, float]] = []
    for name in part_names(folder):
        place = folder / PARTS_FOLDER / name
        manifest = Manifest(place)
        manifest.close()
        quarantined += sorted(manifest.quarantined)
        parts[name] = {"shards": len(manifest.shards), "rows": sum(shard.rows for shard in manifest.shards),
                       "bytes": sum(shard.bytes for shard in manifest.shards)}
        for shard in manifest.shards:
            file = shards.file_of(place, shard.sha256)
            ids, views_of_rows = shards.read_index(file)
            keys = set(zip(ids, views_of_rows.tolist(), strict=True)) - seen
            seen |= keys
            if header.keep in ("topk", "tokens"):
                tails.append(shards.read_tensors(file, ["tail"])["tail"].astype(np.float64))
            if header.keep != "tokens":
                views.update(view for _, view in keys)
                continue
            found = shards.read_tensors(file, ["count", "kl", "loss"])
            for row, key in enumerate(zip(ids, views_of_rows.tolist(), strict=True)):
                if key in keys:
                    count, kl, loss = (found[field][row].item() for field in ("count", "kl", "loss"))
                    views[key[1]] += count
                    runs.append((key[0], count, kl, loss))
    mass = np.exp(np.concatenate(tails)).mean(axis=0).tolist() if tails else []
    return {
        "path": str(folder),
        "format_version": header.format_version,
        "keep": header.keep,
        "tap": header.tap,
        "shape": list(header.shape),
        "codec": header.codec,
        "stated_error": header.stated_error,
        "row_bytes": row_bytes(header),
        "rows": sum(views.values()),
        "rows_by_view": {str(view): views[view] for view in sorted(views)},
        "parts": parts,
        "quarantined": [[name, view] for name, view in quarantined],
        "tail_mass": dict(zip(map(str, header.temperatures), mass, strict=False)),
        "tokens": _tokens(header, runs) if header.keep == "tokens" else None,
        "teacher": header.teacher, "data": header.data, "transform": header.transform, "rights": dict(header.rights),
    }


def _tokens(header: Header, runs: list[tuple[str, int, float, float]]) -> dict[str, Any]:
    """What is said of a store of tokens. runs: id, count, mean KL, mean loss of each sequence."""
    positions = sum(count for _, count, _, _ in runs)
    worst = max(runs, key=lambda run: run[2], default=None)
    return {
        "sequences": len(runs),
        "positions": positions,
        "kl": sum(count * kl for _, count, kl, _ in runs) / positions if positions else None,
        "loss": sum(count * loss for _, count, _, loss in runs) / positions if positions else None,
        "worst": None if worst is None else {"id": worst[0], "kl": worst[2]},
        "tokenizer": header.tokenizer,
        "template": header.template,
        "translated_from": header.translated_from,
    }


def verify(folder: str | Path) -> list[Fault]:
    """Everything in the store that does not have the hash under which it was acknowledged (reads every byte).

    Raises DataError where there is no store or its header can't be read.
    """
    folder = Path(folder)
    _, digest = read_header(folder)
    faults = []
    for name in part_names(folder):
        place = folder / PARTS_FOLDER / name
        try:
            manifest = Manifest(place)
        except DataError as error:
            faults.append(Fault(name, "manifest.sqlite", str(error), 0))
            continue
        manifest.close()
        if manifest.header not in ("", digest):
            faults.append(Fault(name, HEADER_FILE, f"sha256 {digest[:12]}, but the part was begun under {manifest.header[:12]}", 0))
        for shard in manifest.shards:
            problem = shards.fault(place, shard)
            if problem:
                faults.append(Fault(name, shards.file_of(place, shard.sha256).name, problem, shard.rows))
    return faults
