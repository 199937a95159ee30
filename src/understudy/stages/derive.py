"""`student.from_teacher`: the student's architecture, before anything is computed, and its start weights, once there is a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from understudy import atomic, kinds, tokens
from understudy.cache import Cache
from understudy.errors import RecipeError, four_parts
from understudy.preprocess.passages import Passages
from understudy.preprocess.text import Text
from understudy.stages import reading
from understudy.stages.prepare import Prepared
from understudy.stages.taught import Taught
from understudy.students import from_teacher, static
from understudy.students.from_teacher import Cut
from understudy.students.weights import FILE
from understudy.tokens import Tokenizer

VERSION = 1
ARCHITECTURES = {"pretrained": Text, "embedder": Text, "masked": Passages}
"""Architectures that can be cut, and what each reads."""
CALIBRATION = 512
"""Training texts on which the importance of the teacher's parts is measured."""


def settle_student(tree: dict[str, Any], prepared: Prepared) -> None:
    """Fill in the student's model in place, where it comes from its teacher. RecipeError where nothing could be copied."""
    wanted = tree["student"]["from_teacher"]
    if wanted is None or tree["student"]["model"] != "auto":
        return
    entry = tree["teacher"][0]
    folder = reading.folder_of(entry.get("model") or {})
    read = prepared.preprocess
    cuttable = folder is not None and isinstance(read, ARCHITECTURES.get(entry["model"]["arch"], ()))
    if len(tree["teacher"]) > 1 or entry["kind"] != "local" or not cuttable:
        raise RecipeError(
            four_parts(
                "student.from_teacher needs one pretrained teacher that reads text",
                got=f"{len(tree['teacher'])} teacher(s), the first of kind {entry['kind']}",
                expected="teacher: {kind: local, model: {arch: pretrained, path: FOLDER}}, or arch: embedder, or masked for hidden tokens",
                otherwise="There would be no layers to copy",
                do="Give the student a model of its own",
            )
        )
    arch, options = entry["model"]["arch"], {key: value for key, value in entry["model"].items() if key != "arch"}
    known: Any = kinds.configure("models", arch, options)
    if wanted["static"]:
        _static(tree, arch, prepared.outputs)
        return
    config = known.configuration(*([prepared.outputs] if arch == "pretrained" else [])).to_dict()
    chosen = _layers(wanted, config["num_hidden_layers"])
    assert folder is not None and isinstance(read, Text | Passages)
    own = rows_of(tokens.read(folder), read.tokenizer) is None  # the teacher's embedding as it is, with rows behind the last token
    made = from_teacher.configured(
        config,
        chosen,
        width=wanted["width"],
        inner=wanted["inner"],
        vocabulary=None if own else read.vocabulary,
        pad=config["pad_token_id"] if own else read.pad,
    )
    unsaid = ("_name_or_path", "transformers_version", "id2label", "label2id")
    config = {key: made[key] for key in made if key not in unsaid}
    pooled = {"pooling": known.sentences().pooling, "normalise": known.sentences().normalise} if arch == "embedder" else {}
    tree["student"]["model"] = {"arch": arch, "path": "", "config": config, **pooled}


def _static(tree: dict[str, Any], arch: str, width: int) -> None:
    """Fill in a static student. RecipeError where its teacher gives no vectors, or narrower ones."""
    wanted = tree["student"]["from_teacher"]["static"]
    if arch != "embedder" or wanted > width:
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
    assert isinstance(prepared.preprocess, Text | Passages)
    made: dict[str, Any] = {
        "teacher": taught.fixed.fingerprint, "wanted": wanted, "student": tree["student"]["model"].get("config"),
        "tokens": prepared.preprocess.fingerprint}  # fmt: skip
    if not wanted["static"]:
        made["data"] = prepared.examples.fingerprint
    folder = cache.folder("start", made, VERSION)
    with cache.claim(folder):
        if not cache.done(folder):
            if wanted["static"]:
                state = _table(reading.folder_of(entry["model"]) or "", wanted["static"])
            else:
                theirs = prepared.read_by(entry["model"], entry.get("tokenizer"))
                state = from_teacher.cut(taught.modules[0].state_dict(), _chosen(tree, prepared, theirs, taught), _head_size(taught))
            atomic.write_bytes(folder / FILE, save({name: value.contiguous() for name, value in state.items()}))
            cache.finish(folder, {"tensors": len(state)})
    return {**tree, "student": {**tree["student"], "weights": str(folder / FILE)}}


def _table(folder: str, width: int) -> dict[str, Tensor]:
    """The state of a static student that has not seen a text: the teacher's view of each token, PCA and weights by frequency."""
    vectors = static.distil(folder, dimensions=width).model.vectors()
    return {"embeddings": torch.from_numpy(static.scaled(vectors).astype(np.float32))}


def _layers(wanted: Mapping[str, Any], count: int) -> tuple[int, ...]:
    layers = wanted["layers"]
    return from_teacher.evenly(count, layers) if isinstance(layers, int) else tuple(layers)


def _head_size(taught: Taught) -> int:
    module: Any = taught.modules[0]
    config = module.model.config
    return int(config.hidden_size // config.num_attention_heads)


def _chosen(tree: Mapping[str, Any], prepared: Prepared, theirs: Prepared, taught: Taught) -> Cut:
    """What is kept: the layers as asked, and of every width what says most on training texts."""
    module: Any = taught.modules[0]
    config, had = tree["student"]["model"]["config"], module.model.config
    layers = _layers(tree["student"]["from_teacher"], had.num_hidden_layers)
    assert isinstance(prepared.preprocess, Text | Passages) and isinstance(theirs.preprocess, Text | Passages)
    rows = rows_of(theirs.preprocess.tokenizer, prepared.preprocess.tokenizer)
    if (config["hidden_size"], config["intermediate_size"]) == (had.hidden_size, had.intermediate_size):
        return Cut(layers, tokens=rows)
    which = prepared.distilled[torch.linspace(0, len(prepared.distilled) - 1, min(CALIBRATION, len(prepared.distilled))).long()]
    batches = [batch.inputs for batch in theirs.rows.batches(which, 64)]
    hidden, heads, inner = from_teacher.importance(module, batches, theirs.preprocess.pad)
    places = from_teacher.largest(hidden, config["hidden_size"])
    kept = [from_teacher.largest(heads[at], config["num_attention_heads"]) for at in layers]
    units = [from_teacher.largest(inner[at], config["intermediate_size"]) for at in layers]
    return Cut(layers, places, tuple(kept), tuple(units), rows)


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
