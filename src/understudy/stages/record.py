"""Teacher -> store: every row that students or the report will need, asked once, kept under the key of what it depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from understudy.cache import Cache
from understudy.errors import Interrupted
from understudy.events import Cancel, Event, OnEvent
from understudy.records import Knowledge
from understudy.rights.terms import Rights, from_dict
from understudy.run_folder import sweep
from understudy.stages.common import digest
from understudy.stages.prepare import Prepared
from understudy.stages.teach import Taught
from understudy.store import codec
from understudy.store.reader import Reader
from understudy.store.schema import Header, read_header
from understudy.store.writer import Writer
from understudy.teachers import stored

VERSION = 1
BATCH = 256


def temperatures_of(tree: Mapping[str, Any]) -> tuple[float, ...]:
    """The fixed temperatures that the objective uses, and 1."""
    found = {1.0}
    for entry in tree["objective"]:
        value = entry.get("temperature")
        if isinstance(value, int | float):
            found.add(float(value))
    return tuple(sorted(found))


def planned_header(tree: Mapping[str, Any], prepared: Prepared) -> Header:
    """The header of the store to be, as far as it is known before there is a teacher."""
    keep = tree["store"]["keep"]
    return Header(
        keep=keep,
        dtype=tree["store"]["dtype"],
        k=min(tree["store"]["k"], len(prepared.classes)) if keep == "topk" else 0,
        members=len(tree["teacher"]),
        classes=len(prepared.classes),
        temperatures=temperatures_of(tree) if keep == "topk" else (),
        teacher="not known yet",
        data=prepared.examples.fingerprint,
        transform=prepared.transform,
    )


def header_of(tree: Mapping[str, Any], prepared: Prepared, taught: Taught, rights: Mapping[str, Any]) -> Header:
    """What the store is going to hold, and under which conditions."""
    if taught.header is not None:
        return replace(taught.header, rights=dict(rights))
    return replace(
        planned_header(tree, prepared),
        members=taught.size.members,
        member_weights=tuple(tree["teacher_weights"] or ()),
        teacher=taught.teacher.fingerprint,
        rights=dict(rights),
    )


def record(prepared: Prepared, taught: Taught, header: Header, cache: Cache, on_event: OnEvent, cancel: Cancel) -> Path:
    """Record what is missing; returns the store's folder. A second recipe with the same teacher and data records nothing."""
    folder = cache.folder("store", {"header": digest(header.identity())}, VERSION)
    wanted = [(view, prepared.distilled) for view in prepared.plan_views()]
    wanted.append((0, torch.cat([prepared.validation, prepared.test])))
    names = np.array(prepared.names, dtype=object)
    asked = total = 0
    planned = sum(len(rows) for _, rows in wanted)
    with cache.claim(folder):
        sweep(folder)
        with Writer(folder, header, planned=planned) as writer:
            missing = []
            for view, rows in wanted:
                lacking = set(writer.missing(list(names[rows.numpy()]), view))
                left = (
                    rows
                    if len(lacking) == len(rows)
                    else rows[torch.tensor([name in lacking for name in names[rows.numpy()]], dtype=torch.bool)]
                )
                total += len(left)
                missing.append((view, left))
            for view, rows in missing:
                for batch in prepared.rows.batches(rows, BATCH, prepared.views, view):
                    writer.append(list(names[batch.ids.numpy()]), view, codec.encode(taught.teacher.teach(batch), header))
                    asked += len(batch.ids)
                    on_event(Event("record", "progress", f"{asked:,} of {total:,} rows", asked / total))
                    if cancel():
                        writer.commit()
                        raise Interrupted("stopped after the recorded rows were kept; the same command goes on from here")
            writer.commit()
        cache.finish(folder, {"rows": planned, "codec": header.codec})
    on_event(
        Event(
            "record",
            "note",
            f"asked the teacher for {asked:,} rows" if asked else "nothing to ask: every row is in the store",
            data={"asked": asked},
        )
    )
    return folder


def without_quarantined(folder: Path, header: Header, prepared: Prepared) -> Prepared:
    """The data without the examples whose answer was not finite and is therefore not in the store; a note says how many."""
    bad = {name for name, _ in Reader(folder, header).quarantined}
    if not bad:
        return prepared
    kept = torch.tensor([name not in bad for name in prepared.names])
    parts = {part: getattr(prepared, part)[kept[getattr(prepared, part)]] for part in ("distilled", "control", "validation", "test")}
    shown = ", ".join(sorted(bad)[:5]) + (", ..." if len(bad) > 5 else "")
    note = f"The teacher's answer was not finite for {len(bad)} examples ({shown}): nobody learns or is judged on them."
    return replace(prepared, **parts, notes=(*prepared.notes, note))


def rights_of(folder: str) -> dict[str, Rights]:
    """The rights of each teacher under which a store was recorded, by its name; a store from elsewhere may hold none."""
    header, _ = read_header(folder)
    return {str(name): from_dict(rights) for name, rights in header.rights.get("teachers", {}).items()}


def learn_from(folder: Path, header: Header, prepared: Prepared, tree: Mapping[str, Any]) -> stored.Teacher:
    """The stored teacher that the students learn from: the same answers, looked up."""
    enough = sufficient_temperatures(tree)
    return stored.Teacher(
        Reader(folder, header), prepared.names, views=tuple(prepared.plan_views()), temperatures=enough or (), logits=enough is None
    )


def sufficient_temperatures(tree: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The temperatures at which the objective asks for log-probabilities; None where it needs the logits too."""
    asking = [entry for entry in tree["objective"] if entry["kind"] != "labels.CrossEntropy"]
    if any(entry["kind"] != "logits.SoftTargets" or not isinstance(entry["temperature"], int | float) for entry in asking):
        return None
    return tuple(sorted({float(entry["temperature"]) for entry in asking}))


def said(folder: Path, header: Header, prepared: Prepared, rows: Tensor) -> Knowledge:
    """What the store holds for some plain rows, in their order."""
    ids = [prepared.names[row] for row in rows.tolist()]
    reader = Reader(folder, header)
    return codec.decode(reader.table(ids, 0), header)


def identity(header: Header) -> str:
    """What students that learn from this store depend on."""
    return digest(header.identity())


def probe(prepared: Prepared, size: int = 1000) -> Tensor:
    """Labelled rows for the self-test: validation rows, else training rows."""
    rows = prepared.validation if len(prepared.validation) >= 50 else prepared.teacher
    return rows[:size]
