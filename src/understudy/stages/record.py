"""Teacher -> store: every row that students or the report will need, asked once, kept under the key of what it depends on."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from understudy import cache as caches
from understudy.cache import Cache
from understudy.errors import DataError, Interrupted, RecipeError, four_parts
from understudy.events import Cancel, Event, OnEvent
from understudy.preprocess.passages import Passages
from understudy.records import Knowledge
from understudy.rights.terms import Rights, from_dict
from understudy.run_folder import sweep
from understudy.sections import LIVING
from understudy.stages import states
from understudy.stages.common import digest, needs_of, temperatures_of
from understudy.stages.prepare import Prepared
from understudy.stages.taught import Taught
from understudy.store import codec, steps
from understudy.store.reader import Reader
from understudy.store.schema import Header, read_header, row_bytes
from understudy.store.writer import Writer
from understudy.teachers import stored

VERSION = 1
BATCH = 256
KEPT = {
    "classification": ("dense", "topk", "live"),
    "language": ("tokens", "states", "live"),
    "masked": ("live",),
    "embedding": ("dense", "live"),
}
"""What can be kept of a teacher's answers, by task; what `auto` is stands first."""
NUMBERS = 1 << 26
"""Most numbers in the answers to one batch of text: a quarter of a gigabyte."""


def kept(tree: Mapping[str, Any], prepared: Prepared) -> str:
    """What is kept of the teacher: as the recipe says, or what `auto` is for this data. RecipeError where its answers can't be kept so."""
    wanted, fit = str(tree["store"]["keep"]), KEPT[prepared.task]
    if wanted not in ("auto", *fit) and prepared.task == "masked":
        raise RecipeError(
            four_parts(
                f"store.keep: {wanted} can't serve tokens that are hidden anew in every epoch",
                got="data.task: masked",
                expected="live",
                otherwise="What the teacher said of other holes would be taken for these",
                do="Use store: {keep: live}",
            )
        )
    if wanted != "auto" and wanted not in fit:
        raise RecipeError(
            four_parts(
                f"store.keep: {wanted} is for other data",
                got={"language": "running text", "embedding": "pairs of sentences"}.get(prepared.task, "examples with one answer each"),
                expected=" or ".join(fit),
                otherwise="The disk would fill up" if prepared.generative else "What is kept would be no answer of this kind",
                do=f"Use {fit[0]}, or leave it out",
            )
        )
    return fit[0] if wanted == "auto" else wanted


def planned_header(tree: Mapping[str, Any], prepared: Prepared) -> Header:
    """The header of the store to be, as far as it is known before there is a teacher; of full rows where nothing is going to be stored."""
    wanted = kept(tree, prepared)
    unstored = wanted == "live" or any(teacher["kind"] in LIVING for teacher in tree["teacher"])
    keep: Any = "dense" if unstored else wanted
    if keep == "tokens":
        return _header_of_tokens(tree, prepared)
    if keep == "states":
        return _header_of_states(tree, prepared)
    return Header(
        keep=keep,
        dtype=tree["store"]["dtype"],
        k=min(tree["store"]["k"], prepared.outputs) if keep == "topk" else 0,
        members=len(tree["teacher"]),
        classes=prepared.outputs,
        temperatures=temperatures_of(tree) if keep == "topk" else (),
        teacher="not known yet",
        data=prepared.examples.fingerprint,
        transform=prepared.transform,
    )


def _header_of_tokens(tree: Mapping[str, Any], prepared: Prepared) -> Header:
    temperatures, classes = temperatures_of(tree), prepared.outputs
    dtype: Any = "packed" if classes <= steps.largest_vocabulary("packed") else "uint8"
    return Header(
        keep="tokens",
        dtype=dtype,
        k=steps.kept_within(tree["store"]["token_bytes"], classes, dtype, len(temperatures)),
        classes=classes,
        temperatures=temperatures,
        tokenizer=tokenizer_of(prepared),
        teacher="not known yet",
        data=prepared.examples.fingerprint,
        transform=prepared.transform,
    )


def _header_of_states(tree: Mapping[str, Any], prepared: Prepared) -> Header:
    """Width and output layer are the teacher's (`states.measured`)."""
    return Header(
        keep="states",
        dtype=tree["store"]["dtype"],
        shape=(1,),
        head="not known yet",
        classes=prepared.outputs,
        tokenizer=tokenizer_of(prepared),
        teacher="not known yet",
        data=prepared.examples.fingerprint,
        transform=prepared.transform,
    )


def header_of(tree: Mapping[str, Any], prepared: Prepared, taught: Taught, rights: Mapping[str, Any]) -> Header:
    """What the store is going to hold, and under which conditions."""
    if taught.header is not None:
        return replace(taught.header, rights=dict(rights))
    weights, planned = tree["teacher_weights"], planned_header(tree, prepared)
    if planned.keep == "states":
        planned = states.measured(planned, taught)
    return replace(
        planned,
        members=taught.size.members,
        member_weights=() if isinstance(weights, str) else tuple(weights or ()),  # other weights are found from the recorded rows
        teacher=taught.fixed.fingerprint,
        translated_from=tokenizer_of(taught.own.data) if taught.own is not None and planned.keep == "tokens" else "",
        rights=dict(rights),
    )


def tokenizer_of(prepared: Prepared) -> str:
    """Hash of the tokenizer with which running text is read."""
    assert isinstance(prepared.preprocess, Passages)
    return prepared.preprocess.tokenizer.fingerprint


def batch_of(prepared: Prepared) -> int:
    """Rows that the teacher is asked about at once: of text fewer, as each has an answer over the vocabulary for every token."""
    return max(1, min(BATCH, NUMBERS // (prepared.outputs * prepared.shape[0]))) if prepared.generative else BATCH


def record(prepared: Prepared, taught: Taught, header: Header, cache: Cache, on_event: OnEvent, cancel: Cancel) -> Path:
    """Record what is missing; returns the store's folder. A second recipe with the same teacher and data records nothing."""
    folder = cache.folder("store", {"header": digest(header.identity())}, VERSION)
    wanted = [(view, prepared.distilled) for view in prepared.plan_views()]
    if not header.sequences:  # on text the teacher itself is judged: what it said of a token that it held unlikely is not kept
        wanted.append((0, torch.cat([prepared.validation, prepared.judged])))
    names = np.array(prepared.names, dtype=object)
    asked = total = 0
    planned = sum(len(rows) for _, rows in wanted)
    with cache.claim(folder):
        sweep(folder)
        with Writer(folder, header, planned=planned, head=states.file_of(taught) if header.head else None) as writer:
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
                for batch in prepared.rows.batches(prepared.rows.by_length(rows), batch_of(prepared), prepared.views, view):
                    encoded = codec.encode(taught.fixed.teach(batch), header, batch.labels)
                    writer.append(list(names[batch.ids.numpy()]), view, encoded)
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


def feature_headers(
    tree: Mapping[str, Any], prepared: Prepared, taught: Taught, shapes: Mapping[str, tuple[int, ...]], rights: Mapping[str, Any]
) -> dict[str, Header]:
    """{teacher tap: header of the store of that layer}; empty for `store.features: live`, which keeps none.

    shapes: {teacher tap: shape without B}.
    """
    planned = _planned(tree, prepared, shapes)
    return {tap: replace(one, teacher=taught.fixed.fingerprint, rights=dict(rights)) for tap, one in planned.items()}


def _planned(tree: Mapping[str, Any], prepared: Prepared, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Header]:
    """The headers of the stores of layers, as far as they are known before there is a teacher."""
    if "live" in (tree["store"]["features"], tree["store"]["keep"]):
        return {}
    return {
        tap: Header(
            keep="feature",
            tap=tap,
            shape=shape,
            dtype=tree["store"]["features"],
            classes=prepared.outputs,
            teacher="not known yet",
            data=prepared.examples.fingerprint,
            transform=prepared.transform,
        )
        for tap, shape in shapes.items()
    }


def refuse_layers(tree: Mapping[str, Any], prepared: Prepared, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """DataError where the layers of these shapes would take more than the recipe allows; no teacher is needed to know."""
    if tree["data"]["transfer"]["source"] == "examples":
        refuse_too_large(_planned(tree, prepared, shapes), prepared, tree["store"]["limit_gb"], sys.maxsize)


def feature_rows(prepared: Prepared) -> int:
    """How many rows of each layer are kept: what students learn from, under each view that they see."""
    return len(prepared.distilled) * len(prepared.plan_views())


def feature_bytes(headers: Mapping[str, Header], rows: int) -> int:
    """Bytes of `rows` rows of every layer, without their ids."""
    return rows * sum(row_bytes(header) for header in headers.values())


def room(headers: Mapping[str, Header], cache: Cache) -> int:
    """Bytes that the layers may take on the cache's disk: what is free, and what an earlier recording of them takes already."""
    there = next(place for place in (cache.root.absolute(), *cache.root.absolute().parents) if place.is_dir())
    return shutil.disk_usage(there).free + sum(caches.size(cache.place(*_feature_key(header))) for header in headers.values())


def refuse_too_large(headers: Mapping[str, Header], prepared: Prepared, limit_gb: float, free_bytes: int) -> None:
    """DataError where the layers would take more than `limit_gb` * 10^9 bytes or than `free_bytes` (see `room`); nothing is written."""
    rows = feature_rows(prepared)
    needed = feature_bytes(headers, rows)
    limit = min(limit_gb * 1e9, free_bytes)
    if needed <= limit:
        return
    tap, largest = max(headers.items(), key=lambda item: row_bytes(item[1]))
    scarce = "store.limit_gb" if limit_gb * 1e9 <= free_bytes else "free on the disk"
    remedies = [
        *([] if largest.dtype == "int8" else ["store.features: int8"]),
        *(["fewer data.augment.views"] if prepared.view_count > 1 else []),
        *(["fewer layers"] if len(headers) > 1 else ["a smaller layer"]),
        *(["a larger store.limit_gb"] if limit_gb * 1e9 <= free_bytes else []),
    ]
    raise DataError(
        four_parts(
            "the teacher's layers would take too much room",
            got=f"{needed / 1e9:.3g} GB for {rows:,} rows (the largest: {row_bytes(largest):,} bytes a row of {tap})",
            expected=f"at most {limit / 1e9:.3g} GB ({scarce})",
            otherwise="The disk would fill up while the teacher is asked",
            do=f"Use {', '.join(remedies)}, or store.features: live, which keeps none and asks the teacher in every step",
        )
    )


def record_features(
    prepared: Prepared, taught: Taught, headers: Mapping[str, Header], cache: Cache, on_event: OnEvent, cancel: Cancel
) -> dict[str, Path]:
    """Record what is missing of each layer; returns {teacher tap: folder of its store}.

    Only rows that students learn from, under the views that they see. The teacher is asked once for a batch, whatever the number of
    layers that lack it, and has to give all of `headers` as features. Raises DataError where it does not, or where more than 0.1 % of the
    rows of a layer are not finite; Interrupted after what was asked is kept.
    """
    if not headers:
        return {}
    folders = {tap: cache.folder(*_feature_key(header)) for tap, header in headers.items()}
    names = np.array(prepared.names, dtype=object)
    planned, asked = feature_rows(prepared), 0
    with ExitStack() as claims:
        for folder in sorted(folders.values()):  # in one order, so that two runs can't wait for each other
            claims.enter_context(cache.claim(folder))
            sweep(folder)
        with ExitStack() as opened:
            writers = {tap: opened.enter_context(Writer(folders[tap], header, planned=planned)) for tap, header in headers.items()}
            missing = []
            for view in prepared.plan_views():
                lacking = {tap: _lacking(writer, names, prepared.distilled, view) for tap, writer in writers.items()}
                missing.append((view, lacking, prepared.distilled[torch.stack(list(lacking.values())).any(0)[prepared.distilled]]))
            total = sum(len(rows) for _, _, rows in missing)
            for view, lacking, rows in missing:
                for batch in prepared.rows.batches(rows, BATCH, prepared.views, view):
                    said = taught.fixed.teach(batch)
                    for tap, writer in writers.items():
                        wanted = lacking[tap][batch.ids].numpy()
                        if not wanted.any():
                            continue
                        encoded = codec.encode(said, headers[tap])
                        writer.append(
                            list(names[batch.ids.numpy()[wanted]]), view, {name: array[wanted] for name, array in encoded.items()}
                        )
                    asked += len(batch.ids)
                    on_event(Event("record", "progress", f"{asked:,} of {total:,} rows of {len(headers)} layers", asked / total))
                    if cancel():
                        raise Interrupted("stopped after the recorded rows were kept; the same command goes on from here")
        for tap, header in headers.items():
            cache.finish(folders[tap], {"rows": planned, "codec": header.codec})
    on_event(
        Event(
            "record",
            "note",
            f"asked the teacher for {asked:,} rows of {', '.join(headers)}" if asked else "nothing to ask: every layer is in its store",
            data={"asked": asked},
        )
    )
    return folders


def _feature_key(header: Header) -> tuple[str, dict[str, str], int]:
    """Stage, inputs and version under which the cache keeps a layer."""
    return "features", {"header": digest(header.identity())}, VERSION


def _lacking(writer: Writer, names: np.ndarray, rows: Tensor, view: int) -> Tensor:
    """(N,) bool over the data set's rows: those of `rows` that the store lacks in this view."""
    lacking = set(writer.missing(names[rows.numpy()], view))
    found = torch.zeros(len(names), dtype=torch.bool)
    found[rows] = torch.tensor([name in lacking for name in names[rows.numpy()]], dtype=torch.bool)
    return found


def without_quarantined(folder: Path, header: Header, prepared: Prepared, features: Mapping[str, Path] | None = None) -> Prepared:
    """The data without the examples whose answer, or layer, was not finite and is therefore not in a store; a note says how many."""
    readers = [Reader(folder, header)]
    # Only their manifests are wanted here; `learn_from` compares the hashes and joins the rows.
    readers += [Reader(place, check_hashes=False, resident_bytes=0) for place in (features or {}).values()]
    bad = {name for reader in readers for name, _ in reader.quarantined}
    if not bad:
        return prepared
    kept = torch.tensor([name not in bad for name in prepared.names])
    sets = ("distilled", "control", "validation", "test", "outside")
    parts = {part: getattr(prepared, part)[kept[getattr(prepared, part)]] for part in sets}
    shown = ", ".join(sorted(bad)[:5]) + (", ..." if len(bad) > 5 else "")
    note = f"The teacher's answer was not finite for {len(bad)} examples ({shown}): nobody learns or is judged on them."
    return replace(prepared, **parts, notes=(*prepared.notes, note))


def rights_of(folder: str) -> dict[str, Rights]:
    """The rights of each teacher under which a store was recorded, by its name; a store from elsewhere may hold none."""
    header, _ = read_header(folder)
    return {str(name): from_dict(rights) for name, rights in header.rights.get("teachers", {}).items()}


def learn_from(
    folder: Path, header: Header, prepared: Prepared, tree: Mapping[str, Any], features: Mapping[str, Path] | None = None
) -> stored.Teacher:
    """The stored teacher that the students learn from: the same answers and layers (`record_features`), looked up."""
    if header.sequences:
        return stored.Teacher(Reader(folder, header), prepared.names, views=(0,), temperatures=header.temperatures)
    enough = sufficient_temperatures(tree)
    return stored.Teacher(
        Reader(folder, header),
        prepared.names,
        views=tuple(prepared.plan_views()),
        temperatures=enough or (),
        logits=enough is None,
        features={tap: Reader(place) for tap, place in (features or {}).items()},
    )


def sufficient_temperatures(tree: Mapping[str, Any]) -> tuple[float, ...] | None:
    """The temperatures at which the objective asks for log-probabilities; None where it needs the logits too, or asks for none.

    Terms that match layers alone ask for neither. Weights that are found from the members' rows need the rows.
    """
    if isinstance(tree["teacher_weights"], str):
        return None
    asking = [entry for entry in tree["objective"] if {"logits", "topk"} & needs_of(entry["kind"])]
    if not asking or any(entry["kind"] != "logits.SoftTargets" or not isinstance(entry["temperature"], int | float) for entry in asking):
        return None
    return tuple(sorted({float(entry["temperature"]) for entry in asking}))


def said(folder: Path, header: Header, prepared: Prepared, rows: Tensor) -> Knowledge:
    """What the store holds for some plain rows, in their order."""
    ids = [prepared.names[row] for row in rows.tolist()]
    reader = Reader(folder, header)
    return codec.decode(reader.table(ids, 0), header)


def identity(header: Header, features: Mapping[str, Header] | None = None) -> str:
    """What students that learn from this store, and from these layers, depend on."""
    answers = header.identity()
    return digest([answers, {tap: layer.identity() for tap, layer in features.items()}] if features else answers)


def probe(prepared: Prepared, size: int = 1000) -> Tensor:
    """Labelled rows for the self-test: validation rows, else training rows."""
    rows = prepared.validation if len(prepared.validation) >= 50 else prepared.teacher
    return rows[:size]
