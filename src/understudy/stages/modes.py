"""What can't go together in a recipe: refused with a reason before anything is trained, asked or recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from understudy import kinds
from understudy.errors import DataError, RecipeError, four_parts
from understudy.sections import LIVING
from understudy.stages import chain
from understudy.stages.common import make_model, needs_of
from understudy.stages.draft import refuse_draft
from understudy.stages.prepare import Given, Prepared
from understudy.stages.student import refuse_answers
from understudy.stages.writing import refuse_writing
from understudy.store.reader import Reader
from understudy.store.schema import read_header

MODULES = ("local", "assistants", "generations")
"""Kinds of fixed teacher whose answer to an input that is no example can be computed, with its gradient."""
TELLING = {"language": ("decoder", "causal"), "masked": ("masked",)}
"""Architectures that say at every token what comes next, or what is hidden."""
ANY = [arch for known in TELLING.values() for arch in known]


def refuse_modes(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """RecipeError, or DataError for a store, where a mode can't do what the recipe asks of it."""
    if prepared.generative:
        _running_text(tree, prepared, given)
    if prepared.task == "embedding":
        _vectors(tree, prepared, given)
    _families(tree, prepared)
    if tree["data"]["transfer"]["source"] in ("noise", "generated"):
        _without_data(tree, given)
    refuse_writing(tree, prepared, given)
    refuse_draft(tree, prepared, given)
    if given.teacher is not None:
        entries: list[Mapping[str, Any]] = []
    else:
        entries = list(tree["teacher"])
    if isinstance(tree["teacher_weights"], str):
        _weights(tree, entries)
        refuse_without_validation(tree, prepared)
    if tree["data"]["transfer"]["source"] != "teacher":  # whose own words are the labels
        _somebody_asks(tree)
    for entry in entries:
        if entry["kind"] in LIVING and tree["training"]["balance"] != "none":
            raise RecipeError(
                four_parts(
                    f"training.balance: {tree['training']['balance']} needs a teacher that is there before the student",
                    got=f"teacher: kind {entry['kind']}",
                    expected="a fixed teacher",
                    otherwise="Weights would be settled by the pull of an untrained one",
                    do="Leave balance out and set the weights",
                )
            )
        _written(entry)
        if entry["kind"] == "itself":
            _alone(tree)
        elif entry["kind"] == "stored":
            _views(entry["path"], prepared)
        elif entry["kind"] in ("assistants", "generations"):
            _chain(tree, entry)
    for whose, make in _others(entries, prepared, given):
        refuse_answers(make(), whose, prepared)


def refuse_unclassed(prepared: Prepared, what: str) -> None:
    """RecipeError where something is asked of running text, or of pairs of sentences, that is not there for it."""
    if prepared.task != "classification":
        kind = "running text" if prepared.generative else "pairs of sentences"
        raise RecipeError(
            four_parts(
                f"{what} is not there for {kind}",
                got=kind,
                expected="examples with one class each",
                otherwise="Answers over a vocabulary, or vectors, would be taken for classes",
                do="Use `understudy run`, or other data",
            )
        )


def _running_text(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """One fixed teacher that is a model here, terms on its answers, and the student's folder as what comes out."""
    teachers = [entry["kind"] for entry in tree["teacher"]]
    for entry in tree["teacher"] if given.teacher is None else ():
        _tells(entry.get("model") or {}, prepared.task)
    layers = [entry["kind"] for entry in tree["objective"] if entry.get("layers") and not _of_tokens(entry["kind"])]
    why = "A token would be taken for an example, and a vocabulary for its classes"

    def only(where: str, wrong: Sequence[str], expected: str) -> None:
        _only("running text", where, wrong, expected, why)

    only("teacher", teachers if given.teacher is None and teachers != ["local"] else [], "one teacher of kind local")
    only("objective", layers, "the families sequence, logits, labels and tokens")
    only("training.balance", [tree["training"]["balance"]] if tree["training"]["balance"] != "none" else [], "none")
    student = tree["student"]["model"]
    arch = student.get("arch") if isinstance(student, Mapping) else None
    fit = TELLING[prepared.task]
    only("student", [str(arch)] if arch in ANY and arch not in fit else [], "arch: " + " or ".join(fit))
    entry = tree["teacher"][0]
    if given.teacher is None and prepared.read_by_teacher(entry) is not prepared:
        asked = "a teacher that reads the student's tokens (student.tokenizer: {kind: folder})"
        only("teacher", ["one with another tokenizer"] if prepared.task == "masked" else [], asked)
        _translated(tree)


def _tells(model: Mapping[str, Any], task: str) -> None:
    """A teacher of running text is a model that says what comes next, or what is hidden, at every token."""
    known = TELLING[task]
    if model.get("arch", known[0]) not in known:
        asked, found = ("what comes next", "Causal") if task == "language" else ("which tokens are hidden", "Masked")
        raise RecipeError(
            four_parts(
                f"this teacher does not say {asked} in text",
                got=f"arch: {model['arch']}",
                expected=f"arch: {' or '.join(known)}",
                otherwise="There would be no answer for a token",
                do=f"Use a folder of AutoModelFor{found}LM with arch: {found.lower()}; an encoder can teach classifiers",
            )
        )


def _translated(tree: Mapping[str, Any]) -> None:
    """What is asked of a teacher with a tokenizer of its own can be computed from top-k rows, and compared with the student's."""
    if tree["metric"] == "next_token":
        raise RecipeError(
            four_parts(
                "metric: next_token compares models with one tokenizer",
                got="a teacher with another one",
                expected="bits_per_byte, next_word or next_word_of_three",
                otherwise="A student of short tokens would keep more than all of its teacher",
                do="Use one of those",
            )
        )
    for entry in tree["objective"]:
        needs = needs_of(entry["kind"])
        if needs and "topk" not in needs:
            raise RecipeError(
                four_parts(
                    f"{entry['kind']} can't be computed from what a teacher with another tokenizer gives",
                    got="top-k rows over the student's tokens",
                    expected="the family sequence, or logits.SoftTargets",
                    otherwise="Logits of the teacher's tokens would be taken for those of the student's",
                    do="Use one of those, or the teacher's tokenizer: student.tokenizer: {kind: folder}",
                )
            )


def _of_tokens(kind: str) -> bool:
    return getattr(kinds.find("objectives", kind), "of_tokens", False)


def _vectors(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
    """One fixed teacher of vectors, terms on vectors and layers, and no labels: there are none."""
    families = ("embeddings", "features", "relations")
    training, transfer = tree["training"], tree["data"]["transfer"]
    why = "Numbers of a vector would be taken for classes, and there is no label to learn from"

    def only(where: str, wrong: Sequence[str], expected: str) -> None:
        _only("pairs of sentences", where, wrong, expected, why)

    only("teacher", ["an object"] if given.teacher is not None else [], "a teacher that the recipe names")
    objectives = [entry["kind"] for entry in tree["objective"]]
    only("objective", [kind for kind in objectives if kind.partition(".")[0] not in families], "the families " + ", ".join(families))
    only("training.control", ["no_teacher"] if training["control"] == "no_teacher" else [], "init_only")
    only("training.balance", [training["balance"]] if training["balance"] != "none" else [], "none")
    only("training.class_weights", [training["class_weights"]] if training["class_weights"] != "none" else [], "none")
    only("student.match_prior", list(tree["student"]["match_prior"]), "none")
    only("data.transfer", [name for name in ("omit", "only") if transfer[name]], "a share of examples, or nothing")
    only("data.transfer.labels", [str(transfer["labels"])] if transfer["labels"] < 1 else [], "none")


def _only(what: str, where: str, wrong: Sequence[str], expected: str, otherwise: str) -> None:
    if wrong:
        raise RecipeError(
            four_parts(
                f"{what} can't be distilled with this {where}",
                got=", ".join(wrong),
                expected=expected,
                otherwise=otherwise,
                do=f"Use {expected}",
            )
        )


def _families(tree: Mapping[str, Any], prepared: Prepared) -> None:
    """Objectives on vectors are for vectors."""
    wrong = [entry["kind"] for entry in tree["objective"] if entry["kind"].startswith("embeddings.")]
    if wrong and prepared.task != "embedding":
        raise RecipeError(
            four_parts(
                f"{wrong[0]} matches vectors, and this data has {'tokens to tell' if prepared.generative else 'classes'}",
                got=wrong[0],
                expected="objectives of the family logits, or relations for layers",
                otherwise="Rows of logits would be taken for places in a space",
                do="Use logits.SoftTargets, or data of kind pairs",
            )
        )


def _written(entry: Mapping[str, Any]) -> None:
    if entry["kind"] == "weighted":
        raise RecipeError(
            four_parts(
                "weights of teachers are no teacher",
                got="kind: weighted",
                expected="teacher: [{...}, {...}] and teacher_weights: learnt or per_example",
                otherwise="There would be nobody to weigh",
                do="Write teacher_weights beside the list of teachers",
            )
        )


def _without_data(tree: Mapping[str, Any], given: Given) -> None:
    """Inputs that are no examples need a teacher who computes, and terms that ask nothing else of an example."""
    source = tree["data"]["transfer"]["source"]
    entries = tree["teacher"]
    usable = isinstance(given.teacher, nn.Module) if given.teacher is not None else len(entries) == 1 and entries[0]["kind"] in MODULES
    if not usable:
        named = "an object" if given.teacher is not None else ", ".join(entry["kind"] for entry in entries)
        raise RecipeError(
            four_parts(
                f"data.transfer.source: {source} needs one teacher that is a model here",
                got=named,
                expected="one of kind " + ", ".join(MODULES),
                otherwise="Nobody could answer about an input that is no example",
                do="Use such a teacher, or data.transfer.source: examples",
            )
        )
    for entry in tree["objective"]:
        objective: Any = kinds.find("objectives", entry["kind"])
        if objective.of_examples:
            raise RecipeError(
                four_parts(
                    f"{entry['kind']} has nothing to learn from data.transfer.source: {source}",
                    got="inputs without a label or an id",
                    expected="objectives on what the teacher says, such as logits.SoftTargets",
                    otherwise="The term would be zero, or take one input for another",
                    do="Remove it from the objective",
                )
            )


def _weights(tree: Mapping[str, Any], entries: list[Mapping[str, Any]]) -> None:
    """Weights that are found from the members' rows need several members, and the rows."""
    members, keep = len(entries), tree["store"]["keep"]
    if members == 1 and entries[0]["kind"] == "stored":
        header, _ = read_header(entries[0]["path"])
        members, keep = header.members, header.keep
    if members > 1 and keep == "dense":
        return
    raise RecipeError(
        four_parts(
            f"teacher_weights: {tree['teacher_weights']} weighs the members of an ensemble by their full rows",
            got=f"{max(1, members)} teacher" if members < 2 else f"rows of kind {keep}",
            expected="two teachers or more, and store.keep: dense",
            otherwise="There would be nothing to weigh",
            do="Leave teacher_weights out, or name more teachers" if members < 2 else "Set store.keep: dense",
        )
    )


def refuse_without_validation(tree: Mapping[str, Any], prepared: Prepared) -> None:
    """RecipeError where weights of teachers should be learnt from validation rows that are not there."""
    if tree["teacher_weights"] == "learnt" and not len(prepared.validation):
        raise RecipeError(
            four_parts(
                "teacher_weights: learnt needs validation rows",
                got="none",
                expected="some",
                otherwise="Weights from rows that the teachers were trained on would favour whoever overfits most",
                do="Set data.split.validation, for example 0.1",
            )
        )


def _somebody_asks(tree: Mapping[str, Any]) -> None:
    """A teacher beside an objective of labels alone would be paid for nothing. (One that teaches itself may be compared with others.)"""
    if any(not entry["kind"].startswith("labels.") for entry in tree["objective"]):
        return
    raise RecipeError(
        four_parts(
            "no term of the objective asks the teacher",
            got=", ".join(entry["kind"] for entry in tree["objective"]),
            expected="a term such as logits.SoftTargets",
            otherwise="The teacher would be trained and asked, and the student would learn nothing from it",
            do="Add such a term, or write teacher: {kind: itself} where the student teaches itself",
        )
    )


def _alone(tree: Mapping[str, Any]) -> None:
    """A student without a teacher needs objectives that ask for none."""
    for entry in tree["objective"]:
        objective: Any = kinds.find("objectives", entry["kind"])
        if objective.needs:
            raise RecipeError(
                four_parts(
                    f"{entry['kind']} needs a teacher",
                    got="teacher: kind itself",
                    expected="objectives that need none: exits.DeepExits, logits.Progressive, logits.VirtualTeacher",
                    otherwise="The term would stop the run at its first step",
                    do="Use one of those, or name a teacher",
                )
            )


def _views(path: str, prepared: Prepared) -> None:
    """A store has to hold every view that students train on."""
    reader = Reader(path, check_hashes=False, resident_bytes=0)
    missing = [view for view in prepared.plan_views() if view not in reader.views]
    if missing:
        raise DataError(
            four_parts(
                f'the store "{path}" does not hold the views that students train on',
                got="views " + (", ".join(str(view) for view in sorted(reader.views)) or "none"),
                expected=f"views {', '.join(str(view) for view in prepared.plan_views())} (0 is the plain example)",
                otherwise="The run would stop in the middle, at the first batch of such a view",
                do="Record them with `understudy record`, or use the augmentation and number of views that it was recorded with",
            )
        )


def _chain(tree: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
    """Every stage of a chain is taught by a model that stays as it is, by an objective that needs one."""
    chain.objectives_of(tree, entry)
    first = entry.get("of")
    if first is None:
        return
    _written(first)
    if first["kind"] in LIVING:
        raise RecipeError(
            four_parts(
                f"a chain of assistants can't begin with a teacher of kind {first['kind']}",
                got=f"of: kind {first['kind']}",
                expected="a teacher that is there before them: local, predictor, stored, generations",
                otherwise="There would be nobody to teach the first assistant",
                do="Name such a teacher under of",
            )
        )
    if first["kind"] in ("assistants", "generations"):
        _chain(tree, first)


def _others(entries: list[Mapping[str, Any]], prepared: Prepared, given: Given) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Every model that is trained beside the student or before it as a stage of a chain."""

    def made(spec: Mapping[str, Any]) -> Callable[[], nn.Module]:
        return lambda: make_model(spec, prepared, given, 0, "check")

    for entry in entries:
        if entry["kind"] == "online":
            yield "the online teacher", made(entry["model"])
        elif entry["kind"] == "peers":
            for index, spec in enumerate(entry["models"]):
                yield f"peer {index + 1}", made(spec)
        elif entry["kind"] == "assistants":
            yield from _others([entry["of"]], prepared, given)
            for index, stage in enumerate(entry["through"]):
                yield f"assistant {index + 1}", made(stage["model"])
