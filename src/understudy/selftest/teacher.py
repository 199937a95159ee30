"""Checks of the teacher itself: is it at rest, does it answer, and does an answer say anything about the example?"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from understudy.evaluation import metrics
from understudy.selftest.subject import Check, Named, Subject, scale, spread
from understudy.store.writer import TOLERATED

SAME_BATCH, OTHER_BATCH = 1e-4, 0.05
"""Largest difference of two passes, as a share of the row's range of logits: of one batch twice, and of a batch whole and in halves,
where bfloat16 rounds in another order."""
SILENT_ROWS, UNIFORM_ROWS = 0.05, 0.5
"""More rows of zeros, or of equal entries, than this are a fault. A few are natural: an empty document, a tie of two neighbours."""
EQUAL = 1e-6
"""Log-probabilities closer than this are equal."""


def trainable(subject: Subject) -> Check:
    """No parameter of the teacher learns along, none is the student's own, and no answer carries a gradient."""
    check = Named("trainable-teacher")
    own = {name: p for index, module in enumerate(subject.modules) for name, p in _named(module, index, len(subject.modules))}
    open_ = [name for name, p in own.items() if p.requires_grad]
    graded = [name for name, p in own.items() if p.grad is not None]
    places = {p.data_ptr() for p in own.values() if p.numel()}
    shared = [name for name, p in subject.student().named_parameters() if p.numel() and p.data_ptr() in places] if own else []
    if shared:
        return check.fault(
            f"{len(shared)} shared tensors",
            "student and teacher share parameters",
            got=f"{shared[0]} and {len(shared) - 1} more",
            expected="none",
            otherwise="Every step of the student would change what the teacher says",
            do="Give the student a copy: copy.deepcopy(model)",
        )
    if open_ or graded:
        first = (open_ or graded)[0]
        return check.fault(
            f"{len(open_)} of {len(own)} parameters trainable",
            "the teacher is not frozen",
            got=f"{first} {'requires a gradient' if open_ else 'holds a gradient'}",
            expected="requires_grad False and no gradient everywhere",
            otherwise="The teacher would drift towards the student, or memory and time would be spent on gradients that nobody uses",
            do="Call teacher.requires_grad_(False) and teacher.zero_grad()",
        )
    if _leaks(subject):
        return check.fault(
            "its answers carry a gradient",
            "the teacher's answers carry a gradient",
            got="logits with requires_grad",
            expected="answers made under torch.no_grad()",
            otherwise="The teacher would drift towards the student, or memory and time would be spent on gradients that nobody uses",
            do="Compute the answer under torch.no_grad(), or detach it",
        )
    return check.ok(f"{len(own)} tensors frozen" if own else "it has no module, and its answers carry no gradient")


def _leaks(subject: Subject) -> bool:
    """Whether an answer requires a gradient; False where there is none (the check "no-answer" says so)."""
    try:
        answer = subject.teacher.teach(subject.batch(subject.learnt_rows[:2], subject.view))
    except Exception:  # whatever the user's own teacher raises
        return False
    parts = (answer.logits, answer.topk.logits if answer.topk else None)
    return any(part is not None and part.requires_grad for part in parts)


def train_mode(subject: Subject) -> Check:
    """One batch twice, and whole against halves: the answers may depend on nothing but the example (dropout, batch statistics)."""
    check = Named("train-mode")
    playing = [
        f"{name or type(module).__name__}"
        for module in subject.modules
        for name, part in module.named_modules()
        if part.training and isinstance(part, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd)
    ]
    if playing:
        return check.fault(
            f"{len(playing)} layers in train mode",
            "the teacher was left in train mode",
            got=f"{playing[0]}.training is True",
            expected="False for dropout and batch norm",
            otherwise="Its answers would be noisy and depend on the rest of the batch",
            do="Call teacher.eval()",
        )
    if subject.live is None:
        return check.skipped("answers are looked up")
    rows = spread(subject.probe, 64)
    half = len(rows) // 2
    first, second, *parts = [_logits(subject, some) for some in (rows, rows, *((rows[:half], rows[half:]) if half else (rows,)))]
    if first is None or second is None or any(part is None for part in parts):
        return check.skipped("it gives no full rows")
    again = _apart(first, second)
    split = _apart(first, torch.cat([part for part in parts if part is not None]))
    if again > SAME_BATCH or split > OTHER_BATCH:
        return check.fault(
            f"two passes differ by {max(again, split):.1%}",
            "two passes of the teacher over the same examples differ",
            got=f"{again:.1%} of a row's range {'in the same batch' if again > SAME_BATCH else f'({split:.1%} in another batch)'}",
            expected=f"at most {SAME_BATCH:.2%} ({OTHER_BATCH:.0%} in another batch)",
            otherwise="The student would learn noise, and what is stored would not be what the teacher says",
            do="Call teacher.eval(); batch norm needs its running statistics",
        )
    return check.ok(f"two passes differ by {max(again, split):.1e} of a row's range")


def finite(subject: Subject) -> Check:
    """No NaN and no infinity; a store leaves out up to 0.1 % of such rows."""
    check = Named("not-finite")
    bad = total = 0
    for some in subject.answers.each:
        wrong = ~np.isfinite(some.log_probs).all(axis=1)
        if some.logits is not None:
            wrong |= ~torch.isfinite(some.logits).flatten(1).all(dim=1).numpy()
        bad, total = bad + int(wrong.sum()), total + len(wrong)
    figure = f"{bad:,} of {total:,} rows"
    if not bad:
        return check.ok(figure)
    make = check.fault if bad > TOLERATED * total else check.warning
    return make(
        figure,
        "the teacher's answers are not finite",
        got=f"NaN or infinity in {bad} of {total} rows",
        expected=f"at most {TOLERATED:.1%}, which are left out",
        otherwise="One such row turns every weight of the student into NaN",
        do="Look at the teacher's weights, its precision and the scale of its inputs",
    )


def class_count(subject: Subject) -> Check:
    """Teacher, student and data know the same number of classes."""
    check = Named("class-count")
    classes = subject.outputs
    found = {"the teacher's answers": subject.answers.judged.log_probs.shape[1], "its sample": subject.answers.sample.log_probs.shape[1]}
    if subject.teacher_classes is not None:
        found["the teacher's names"] = len(subject.teacher_classes)
    if subject.header is not None:
        found["the store"] = subject.header.classes
    student = subject.student().eval()
    with torch.inference_mode():
        found["the student's answers"] = student(subject.batch(subject.learnt_rows[:2], subject.view).inputs).shape[-1]
    wrong = {what: number for what, number in found.items() if number != classes}
    if wrong:
        what, number = next(iter(wrong.items()))
        return check.fault(
            f"{number} instead of {classes}",
            "the numbers of classes differ",
            got=f"{number} in {what}",
            expected=f"{classes}, as in the data",
            otherwise="Probabilities would be matched with those of other classes",
            do="Use a teacher for these classes, or name the data's classes",
        )
    return check.ok(f"{classes} everywhere")


def silent(subject: Subject) -> Check:
    """Rows of zeros, or rows in which all classes are equal, teach nothing."""
    check = Named("zero-teacher")
    zeros, uniform, total = 0.0, 0.0, 0
    for some in subject.answers.each:
        rows = len(some.labels)
        members = some.log_probs[:, None, :] if some.logits is None else some.logits.numpy()
        spread_ = members.max(axis=-1) - members.min(axis=-1)
        uniform = max(uniform, float((spread_ < EQUAL).mean(axis=0).max()))
        if some.logits is not None:
            zeros = max(zeros, float((members == 0).all(axis=-1).mean(axis=0).max()))
        total += rows
    figure = f"{zeros:.1%} zero, {uniform:.1%} uniform of {total:,} rows"
    if zeros > SILENT_ROWS or uniform > UNIFORM_ROWS:
        return check.fault(
            figure,
            "the teacher says nothing",
            got=f"{zeros:.1%} rows of zeros, {uniform:.1%} rows in which all classes are equal",
            expected=f"at most {SILENT_ROWS:.0%} and {UNIFORM_ROWS:.0%}",
            otherwise="The student would learn that every class is equally likely, at a plausible loss",
            do="Look at how the rows were written: an index that runs past the end gives zeros; or load the teacher's weights",
        )
    if zeros:
        return check.warning(
            figure,
            "some of the teacher's rows are all zero",
            got=f"{zeros:.1%}",
            expected="none",
            otherwise="For these examples the student learns that every class is equally likely",
            do="Look at these examples",
        )
    return check.ok(figure)


def constant(subject: Subject) -> Check:
    """The answer depends on the example."""
    check = Named("constant-teacher")
    least = math.inf
    for some in subject.answers.each:
        members = torch.from_numpy(some.log_probs)[:, None, :] if some.logits is None else torch.log_softmax(some.logits.double(), dim=-1)
        if len(members) > 1:
            moved = (members - members[:1]).abs() / (1.0 + members[:1].abs())
            least = min(least, float(moved.amax(dim=(0, 2)).min()))
    if least == math.inf:
        return check.skipped("one row only")
    if least < EQUAL:
        return check.fault(
            "all rows are equal",
            "the teacher (or a member of it) gives the same answer for every example",
            got=f"rows that differ by {least:.1e}",
            expected="answers that depend on the example",
            otherwise="The student would learn the classes' frequencies and nothing else",
            do="Load the teacher's weights, and look at what its inputs are scaled to",
        )
    return check.ok(f"rows differ by up to {least:.2g}")


def probabilities(subject: Subject) -> Check:
    """What is called logits is not rows of probabilities: a softmax of those is nearly uniform."""
    check = Named("probabilities-as-logits")
    share = 0.0
    for some in subject.answers.each:
        if some.logits is None:
            return check.skipped("no full rows of logits")
        # Rows of a float16 store are off by up to 2**-12 an entry, so their sum by about the root of C of that.
        slack = 1e-3 + 2.0**-10 * some.logits.shape[-1] ** 0.5
        rows = (some.logits >= -slack).all(dim=-1) & ((some.logits.sum(dim=-1) - 1).abs() < slack)
        share = max(share, float(rows.float().mean(dim=0).max()))
    if share > 0.99:
        return check.fault(
            f"{share:.0%} of the rows sum to 1",
            "the teacher's logits are probabilities",
            got="rows from 0 to 1 that sum to 1",
            expected="numbers before the softmax, or logarithms of probabilities",
            otherwise="A softmax of probabilities is almost uniform, whatever the teacher knows, and a temperature makes it flatter still",
            do="Remove the softmax, or return log(probabilities); for an ONNX file set output: probabilities",
        )
    return check.ok(f"{share:.0%} of the rows sum to 1")


def below_trivial(subject: Subject) -> Check:
    """The teacher ranks examples of a class above others (mean AUROC over the classes, one against the rest).

    A ranking is judged, not decisions or confidence, so that a teacher of 1:50 with a threshold of its own is not blamed for an accuracy
    below the majority's. Fault: not above 0.5 by 2.33 standard errors (p = 0.01, of the rows and, from five classes on, of the scatter
    between classes, since random weights are right about some classes by chance). Where few rows make that more than 0.175, 0.675 does.
    """
    check = Named("teacher-below-trivial")
    some = subject.answers.judged.labelled(len(subject.classes))
    counts = np.bincount(some.labels, minlength=len(subject.classes))
    present = [label for label, count in enumerate(counts) if 0 < count < len(some.labels)]
    if len(present) < 2 or len(some.labels) < 20:
        return check.skipped(f"{len(some.labels)} labelled rows of {len(present)} classes are too few")
    chosen = present[1:] if len(subject.classes) == 2 else present
    values = np.array([metrics.ranking(some.log_probs[:, label], some.labels == label).mean() for label in chosen])
    inside = np.array([(len(some.labels) + 1) / (12 * counts[label] * (len(some.labels) - counts[label])) for label in chosen])
    # The classes' values share their rows, so their errors are not independent: the mean of the variances is the safe side of that.
    variance = float(inside.mean()) if len(values) < 5 else float(inside.mean()) / len(values) + float(values.var(ddof=1)) / len(values)
    auroc, needed = float(values.mean()), 0.5 + min(2.33 * math.sqrt(variance), 0.175)
    majority = subject.class_counts.max() / max(1, subject.class_counts.sum())
    where = ", rows of its own training" if subject.trained_on_probe else ""
    figure = f"AUROC {auroc:.3f}, accuracy {some.right.mean():.3f} (majority {majority:.3f}) on {len(some.labels):,} rows{where}"
    if auroc < needed:
        return check.fault(
            figure,
            "the teacher is not above the trivial predictor",
            got=f"mean AUROC {auroc:.3f} on {len(some.labels)} labelled rows",
            expected=f"at least {needed:.3f}; guessing gives 0.500",
            otherwise="The student would learn noise with great care",
            do="Load the teacher's weights; check the order of its rows and classes, and that its inputs are scaled as in its training",
        )
    return check.ok(figure)


def _named(module: nn.Module, index: int, members: int) -> list[tuple[str, nn.Parameter]]:
    return [(f"member {index + 1}: {name}" if members > 1 else name, p) for name, p in module.named_parameters()]


def _logits(subject: Subject, rows: Tensor) -> Tensor | None:
    assert subject.live is not None
    logits = subject.live.teach(subject.batch(rows, 0)).logits
    return None if logits is None else logits.double()


def _apart(one: Tensor, other: Tensor) -> float:
    """Largest difference of an entry as a share of what `scale` says of its row; NaN counts as none, another check names it."""
    size = scale(one.amax(dim=-1) - one.amin(dim=-1))
    return float(((one - other).abs().amax(dim=-1) / size).nan_to_num(0.0, 0.0, 0.0).max())
