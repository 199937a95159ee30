"""Which tokenizer reads the texts for which model: each model its own, so that teacher and student need not share one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from understudy import kinds, model_folder, tokens
from understudy.errors import RecipeError, four_parts
from understudy.preprocess.passages import END_MARK, parts
from understudy.sections import Reader
from understudy.tokens import Tokenizer

AFTER_PADDING = ("roberta", "camembert", "xlm-roberta", "mpnet")
"""Architectures that count positions from behind the padding's number."""
PADDING = 1
"""That number where their folder says none."""


def tokenizer_of(
    wanted: Reader,
    student: Mapping[str, Any],
    teachers: Sequence[Mapping[str, Any]],
    texts: Iterable[str],
    running: bool = False,
    whole: bool = False,
    whose: str = "student",
) -> Tokenizer:
    """The student's tokenizer. texts: the training rows'. running: they are told token by token, so that nothing of them may be lost.
    whole: the student is for texts of any kind, not of the training texts' alone.

    `auto` is that of the student's own folder; else that of the teacher's folder (where texts are classified: with the tokens of the
    training texts alone); else byte pairs of the training texts, or of the corpus that is named.
    whose: "teacher" for a teacher's, which is then the `student` here and has no teachers.
    """
    kind, path = wanted.kind, wanted.path
    lowercase = not running if wanted.lowercase is None else wanted.lowercase
    if running and (lowercase or kind in ("words", "pruned")):
        raise RecipeError(
            four_parts(
                "running text is told as it was written",
                got=f"{whose}.tokenizer: {{kind: {kind}, lowercase: {lowercase}}}",
                expected="byte pairs that keep capitals, or the tokenizer of a generative model",
                otherwise="Words that are lost would cost no bits, and bits per byte would flatter the student",
                do="Use kind: bpe and leave lowercase out",
            )
        )
    if kind == "auto":
        own, theirs = folder_of(student), next((found for one in teachers if (found := folder_of(one.get("model") or {}))), None)
        if own:
            return tokens.read(own)
        kind, path = ("folder" if running or whole else "pruned", theirs) if theirs else ("bpe", None)
    if kind in ("bpe", "words"):
        return tokens.train(kind, pieces_of(wanted.corpus) if wanted.corpus else texts, wanted.size, lowercase=lowercase,
                            closed=not running)
    path = path or next((found for one in teachers if (found := folder_of(one.get("model") or {}))), None)
    if path is None:
        raise RecipeError(
            four_parts(
                f"{whose}.tokenizer: {kind} needs a folder",
                got="no path, and no teacher with a folder of its own",
                expected="path: FOLDER",
                otherwise="There would be no tokens",
                do="Name a folder that holds tokenizer.json, or use kind: bpe",
            )
        )
    read = tokens.read(model_folder.found(path) if path.startswith(model_folder.HUB) else path)
    return tokens.pruned(read, texts) if kind == "pruned" else read


def pieces(rows: Iterable[str]) -> Iterator[str]:
    """The documents, or parts of them, in rows of running text, without their marks."""
    return (piece.removesuffix(END_MARK) for row in rows for piece in parts(row))


def pieces_of(corpus: Mapping[str, Any]) -> Iterator[str]:
    """The documents of another corpus than the data."""
    return pieces(kinds.configure("datasets", "corpus", dict(corpus)).load().raw)


def folder_of(model: Mapping[str, Any]) -> str | None:
    """The folder of a pretrained model, which says how its texts are read; None for any other."""
    path = model.get("path") if kinds.architecture(model).reads_folder else None
    return model_folder.found(str(path)) if path else None


def positions(model: Mapping[str, Any], pad: int = 0) -> int | None:
    """Most tokens of a text that a pretrained model has positions for; None where its configuration sets no bound. pad: the tokenizer's,
    which a configuration without a folder gets where it says none (`filled`)."""
    folder = folder_of(model)
    config = model.get("config") or (model_folder.config_of(folder) if folder else {})
    found = next((config[name] for name in ("max_position_embeddings", "n_positions", "n_ctx") if config.get(name)), None)
    if not isinstance(found, int) or found < 1:
        return None
    if config.get("model_type") in AFTER_PADDING:
        found -= int(config.get("pad_token_id", PADDING if folder else pad) or 0) + 1
    said = model_folder.sentences(folder).length if folder and kinds.architecture(model).gives_vectors else None
    return found if said is None else min(found, said)


def filled(spec: Mapping[str, Any], vocabulary: int, pad: int, start: int | None = None) -> dict[str, Any]:
    """An architecture's mapping with what the tokenizer says, where it has fields for it and does not say it itself; a configuration of
    transformers gets it under that library's names. RecipeError for a configuration with fewer rows than the tokenizer has tokens."""
    if "arch" not in spec or spec.get("vocabulary"):
        return dict(spec)
    if config := spec.get("config"):
        config = {"vocab_size": vocabulary, "pad_token_id": pad, **config}
        if not isinstance(config["vocab_size"], int) or config["vocab_size"] < vocabulary:
            raise RecipeError(four_parts(
                f"{spec['arch']}: the configuration has too few rows of embeddings", got=f"vocab_size: {config['vocab_size']!r}",
                expected=f"{vocabulary}, one a token of its tokenizer, or more", otherwise="The first rare word would end the run",
                do="Leave vocab_size out: it is then the tokenizer's"))
        spec = {**spec, "config": config}
    said = {"vocabulary": vocabulary, "pad": pad, "start": start}
    wanted = kinds.fields("models", spec["arch"])
    return {**spec, **{name: value for name, value in said.items() if name in wanted and value is not None}}
