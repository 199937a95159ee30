"""What can't be distilled in a task: running text, vectors, or classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from understudy import kinds
from understudy.errors import RecipeError, four_parts
from understudy.stages.common import needs_of
from understudy.stages.prepare import Given, Prepared


def refuse_for_text(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
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
    tells = kinds.architecture(student).tells if isinstance(student, Mapping) else None
    fit = "arch: " + " or ".join(_telling(prepared.task))
    only("student", [student["arch"]] if tells is not None and tells != prepared.task else [], fit)
    entry = tree["teacher"][0]
    if given.teacher is None and prepared.read_by_teacher(entry) is not prepared:
        asked = "a teacher that reads the student's tokens (student.tokenizer: {kind: folder})"
        only("teacher", ["one with another tokenizer"] if prepared.task == "masked" else [], asked)
        _translated(tree)


def refuse_for_vectors(tree: Mapping[str, Any], prepared: Prepared, given: Given) -> None:
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


def refuse_families(tree: Mapping[str, Any], prepared: Prepared) -> None:
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


def _tells(model: Mapping[str, Any], task: str) -> None:
    """A teacher of running text is a model that says what comes next, or what is hidden, at every token."""
    if "arch" in model and kinds.architecture(model).tells != task:
        asked, found = ("what comes next", "Causal") if task == "language" else ("which tokens are hidden", "Masked")
        raise RecipeError(
            four_parts(
                f"this teacher does not say {asked} in text",
                got=f"arch: {model['arch']}",
                expected=f"arch: {' or '.join(_telling(task))}",
                otherwise="There would be no answer for a token",
                do=f"Use a folder of AutoModelFor{found}LM with arch: {found.lower()}; an encoder can teach classifiers",
            )
        )


def _telling(task: str) -> list[str]:
    """Architectures that say at every token what this task asks."""
    return [arch for arch in kinds.names("models") if kinds.architecture({"arch": arch}).tells == task]


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
    objective: Any = kinds.find("objectives", kind)
    return bool(objective.of_tokens)


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
