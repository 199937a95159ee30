"""`student.from_teacher`: the student's architecture, before anything is computed, and its start weights, once there is a teacher."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from understudy import atomic, kinds, model_folder, tokens
from understudy.cache import Cache
from understudy.compress import part_importance
from understudy.errors import RecipeError, four_parts
from understudy.preprocess.passages import Passages
from understudy.preprocess.text import Text
from understudy.records import Batch
from understudy.stages import prune, reading
from understudy.stages.common import complete, digest
from understudy.stages.prepare import Prepared
from understudy.stages.taught import Taught
from understudy.students import cut_bert, cut_llama, from_teacher, static
from understudy.students.from_teacher import Cut, Layout, Sizes
from understudy.students.weights import FILE
from understudy.tokens import Tokenizer

VERSION = 2
LAYOUTS: dict[str, Layout] = {"bert": cut_bert, "llama": cut_llama}
CALIBRATION, AT_ONCE, AT_ONCE_WITH_SLOPES, BYTES = 512, 64, 8, 1 << 28
"""Training texts on which the importance of the teacher's parts is measured; how many of them at once, where slopes are kept as well; and
how much the logits of so many may take."""
LOUDEST = "activation"
"""The importance of a recipe that names none."""
UNSAID = ("_name_or_path", "transformers_version", "id2label", "label2id", "dtype", "torch_dtype")
"""What of a folder's configuration does not hold of the student's."""


def settle_student(tree: dict[str, Any], prepared: Prepared) -> None:
    """Fill in the student's model in place, where it comes from its teacher. RecipeError where nothing could be copied."""
    wanted = tree["student"]["from_teacher"]
    if wanted is not None and wanted["importance"] == "taylor" and prepared.task == "embedding":
        raise RecipeError(
            four_parts(
                "student.from_teacher: importance taylor needs labels",
                got="sentence vectors, which have no class",
                expected="classes, or running text",
                otherwise="There would be no loss that could miss a part",
                do="Use importance: activation",
            )
        )
    if wanted is None or tree["student"]["model"] != "auto":
        return
    if wanted["prune"]:
        tree["student"]["model"] = prune.model_of(tree, prepared)
        return
    entry = tree["teacher"][0]
    model = entry.get("model") or {}
    known = kinds.architecture(model)
    whole = known.layout is not None and (not known.reads_folder or reading.folder_of(model) is not None)
    fit = whole and isinstance(prepared.preprocess, Text if known.tells is None else Passages)
    if len(tree["teacher"]) > 1 or entry["kind"] != "local" or not fit:
        raise RecipeError(
            four_parts(
                "student.from_teacher needs one pretrained teacher that reads text, or a decoder",
                got=f"{len(tree['teacher'])} teacher(s), the first of kind {entry['kind']}",
                expected="teacher: {kind: local, model: {arch: pretrained, path: FOLDER}}, or arch: embedder; masked for hidden tokens; "
                "causal or decoder for what comes next",
                otherwise="There would be no layers to copy",
                do="Give the student a model of its own",
            )
        )
    if wanted["static"]:
        _static(tree, model["arch"], prepared.outputs)
        return
    made = _decoder(wanted, entry, prepared) if known.layout == "llama" else _encoder(wanted, model, prepared)
    if wanted["importance"] and not _narrower(_measures(model), _measures(made)):
        raise RecipeError(
            four_parts(
                "student.from_teacher.importance chooses nothing",
                got=f"{wanted['importance']}, and the teacher's own width, heads and inner",
                expected="one of them smaller",
                otherwise="It would be ignored",
                do="Leave it out, or make a width smaller",
            )
        )
    tree["student"]["model"] = made


def _encoder(wanted: Mapping[str, Any], model: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """The mapping of a student in the layout of BERT."""
    arch, read, folder = model["arch"], prepared.preprocess, reading.folder_of(model)
    known: Any = kinds.configure("models", arch, {key: value for key, value in model.items() if key != "arch"})
    config = known.configuration().to_dict()
    assert folder is not None and isinstance(read, Text | Passages)
    own = rows_of(tokens.read(folder), read.tokenizer) is None  # the teacher's embedding as it is
    made = cut_bert.configured(
        config,
        wanted["layers"],
        wanted["width"],
        wanted["heads"],
        wanted["inner"],
        vocabulary=None if own and known.tells is None else read.vocabulary,  # who tells loses the rows behind the last token
        pad=config["pad_token_id"] if own else read.pad,
    )
    pooled = {"pooling": known.sentences().pooling, "normalise": known.sentences().normalise} if known.gives_vectors else {}
    return {"arch": arch, "path": "", "config": _said(made), **pooled}


def _decoder(wanted: Mapping[str, Any], entry: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    """The mapping of a student in the layout of Llama. RecipeError where it reads other tokens than its teacher."""
    model = entry["model"]
    if prepared.read_by_teacher(entry) is not prepared:
        raise RecipeError(
            four_parts(
                "student.from_teacher copies the teacher's embedding and output layer, and the student reads other tokens",
                got="two tokenizers",
                expected="the teacher's tokenizer for both",
                otherwise="Rows of one token would be taken for another",
                do="Leave student.tokenizer out, and teacher.tokenizer",
            )
        )
    known: Any = kinds.configure("models", model["arch"], {key: value for key, value in model.items() if key != "arch"})
    if not known.reads_folder:
        had = _measures(model)
        now = from_teacher.smaller(had, wanted["layers"], wanted["width"], wanted["heads"], wanted["inner"], filled=True)
        sizes = {"width": now.width, "layers": now.layers, "heads": now.heads, "kv_heads": now.groups, "inner": now.inner}
        return complete(model | sizes, prepared)
    config = known.configuration().to_dict()
    made = cut_llama.configured(config, wanted["layers"], wanted["width"], wanted["heads"], wanted["inner"], prepared.outputs)
    if _narrower(Sizes.of(config), Sizes.of(made)) and wanted["importance"] != "magnitude":
        cut_llama.refuse_window(config, prepared.shape[0])
    return complete({"arch": model["arch"], "path": "", "config": _said(made)}, prepared)


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in UNSAID}


def _measures(model: Mapping[str, Any]) -> Sizes:
    """The sizes of an architecture's mapping that was cut, or can be."""
    options = {key: value for key, value in model.items() if key != "arch"}
    known: Any = kinds.configure("models", model["arch"], options)
    if not known.reads_folder:
        return Sizes(known.layers, known.width, known.heads, known.groups, known.width // known.heads, known.units)
    return Sizes.of(known.config or model_folder.configuration(known.path, {}).to_dict())


def _narrower(had: Sizes, now: Sizes) -> bool:
    """Whether more is left out than layers."""
    return (had.width, had.heads, had.inner) != (now.width, now.heads, now.inner)


def _static(tree: dict[str, Any], arch: str, width: int) -> None:
    """Fill in a static student. RecipeError where its teacher gives no vectors, or narrower ones."""
    wanted = tree["student"]["from_teacher"]["static"]
    if not kinds.architecture({"arch": arch}).gives_vectors or wanted > width:
        raise RecipeError(
            four_parts(
                "student.from_teacher: static can't be made of this teacher",
                got=f"arch {arch}, static: {wanted}",
                expected=f"a teacher of arch embedder, and at most its width, {width}",
                otherwise="The further columns would be zeros that cost memory",
                do="Use a smaller number, or a teacher of sentence vectors",
            )
        )
    tree["student"]["model"] = {"arch": "static", "width": wanted}


def started(tree: Mapping[str, Any], prepared: Prepared, taught: Taught, cache: Cache) -> dict[str, Any]:
    """The recipe with a file of start weights, cut out of the teacher as it is now; as it was where the student is its own."""
    wanted, entry = tree["student"]["from_teacher"], tree["teacher"][0]
    if wanted is None:
        return dict(tree)
    if wanted["prune"]:
        return prune.started(tree, prepared, taught, cache)
    assert isinstance(prepared.preprocess, Text | Passages)
    made: dict[str, Any] = {
        "teacher": taught.fixed.fingerprint, "wanted": wanted, "student": tree["student"]["model"],
        "tokens": prepared.preprocess.fingerprint}  # fmt: skip
    kind = wanted["importance"] or LOUDEST
    which = prune.calibration(kind, prepared, CALIBRATION)
    if not wanted["static"]:  # texts to measure on, and how they are read
        made["wanted"] = {**wanted, "importance": kind}
        made |= {"data": prepared.examples.fingerprint, "rows": digest(which.tolist()), "read": prepared.transform}
    folder = cache.folder("start", made, VERSION)
    with cache.claim(folder):
        if not cache.done(folder):
            if wanted["static"]:
                state = _table(reading.folder_of(entry["model"]) or "", wanted["static"])
            else:
                layout, had = LAYOUTS[str(kinds.architecture(entry["model"]).layout)], _measures(entry["model"])
                teacher = taught.modules[0]
                state = from_teacher.cut(layout, teacher.state_dict(), _chosen(tree, prepared, teacher, layout, had, which), had)
            atomic.write_bytes(folder / FILE, save({name: value.contiguous() for name, value in state.items()}))
            cache.finish(folder, {"tensors": len(state)})
    return {**tree, "student": {**tree["student"], "weights": str(folder / FILE)}}


def _table(folder: str, width: int) -> dict[str, Tensor]:
    """The state of a static student that has not seen a text: the teacher's view of each token, PCA and weights by frequency."""
    vectors = static.distil(folder, dimensions=width).model.vectors()
    return {"embeddings": torch.from_numpy(static.scaled(vectors).astype(np.float32))}


def _chosen(tree: Mapping[str, Any], prepared: Prepared, teacher: nn.Module, layout: Layout, had: Sizes, which: Tensor) -> Cut:
    """What is kept: the layers as asked, and of every width the most important parts. which: training rows to measure on."""
    entry, wanted, now = tree["teacher"][0], tree["student"]["from_teacher"], _measures(tree["student"]["model"])
    theirs = prepared.read_by_teacher(entry)
    layers = from_teacher.numbered(wanted["layers"], had.layers)
    assert isinstance(prepared.preprocess, Text | Passages) and isinstance(theirs.preprocess, Text | Passages)
    tokens = rows_of(theirs.preprocess.tokenizer, prepared.preprocess.tokenizer)
    if not _narrower(had, now):
        return Cut(layers, tokens=tokens)
    kind, most = wanted["importance"] or LOUDEST, max(1, BYTES // (4 * theirs.outputs * theirs.shape[0]))
    if kind == "magnitude":
        found = part_importance.magnitude(layout, teacher, had, tokens)
    elif kind == "taylor":
        batches = theirs.rows.batches(which, min(AT_ONCE_WITH_SLOPES, most))
        found = part_importance.taylor(layout, teacher, ((batch.inputs, batch.labels) for batch in batches), had, tokens)
    else:
        found = part_importance.activation(layout, teacher, _texts(theirs.rows.batches(which, min(AT_ONCE, most))), had)
    return replace(part_importance.chosen(found, layers, had, now), tokens=tokens)


def _texts(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor]]:
    """(B, L) tokens, and where there are some."""
    for batch in batches:
        assert batch.documents is not None
        yield batch.inputs, batch.documents >= 0


def rows_of(teacher: Tokenizer, student: Tokenizer) -> Tensor | None:
    """(V,) the teacher's row of each of the student's tokens; None where both have the same. RecipeError for tokens that it lacks."""
    if teacher.fingerprint == student.fingerprint:
        return None
    known, own = (one.inner.get_vocab(with_added_tokens=True) for one in (teacher, student))
    lacking = sorted(token for token in own if token not in known)
    if lacking:
        raise RecipeError(
            four_parts(
                "student.from_teacher copies the teacher's embeddings, and the student reads other tokens",
                got=f"{len(lacking)} tokens that the teacher does not have, such as {lacking[0]!r}",
                expected="the teacher's tokens, or some of them",
                otherwise="Their embeddings would start at random",
                do="Leave student.tokenizer out, or use kind: pruned",
            )
        )
    rows = torch.zeros(student.size, dtype=torch.long)
    for token, number in own.items():
        rows[number] = known[token]
    return rows
