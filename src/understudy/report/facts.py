"""`Facts`: all that a report is made from, as plain arrays and numbers. The pipeline fills it; `summary.summarise` reads it.

What every task has is here; what classifiers said is `Classification`, what models of text said `Language`, and which sentences models held
alike `Embedding`. Letters: S seeds, n labelled or unlabelled test rows, m validation rows (may be 0), C classes, D documents, K columns of
a tally, P pairs of sentences.
Nothing in here is a model, a file or a clock: the same facts give the same summary, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from understudy.errors import DataError, four_parts
from understudy.evaluation.language import COLUMNS


@dataclass(frozen=True, slots=True)
class Size:
    """What a model weighs.

    parameters, bytes (of its safetensors file): all members of an ensemble together; None where they can't be counted (a forest).
    macs: multiply-accumulates for one example, all members together; None where they can't be counted.
    members: 1, or the number of members of an ensemble.
    """

    parameters: int | None
    bytes: int | None
    macs: int | None = None
    members: int = 1


@dataclass(frozen=True, slots=True)
class Latency:
    """Wall-clock figures; they go to `details` and bench.json only, because summary.json has to repeat byte for byte.

    teacher, student: seconds for one batch, one figure a round, measured in turns (round i of both is a pair).
    conditions: batch, threads, precision and hardware in words.
    rates: of texts, how many a second each model reads and answers about, tokenizer and all; empty where nobody measured it.
    """

    teacher: Sequence[float]
    student: Sequence[float]
    conditions: str
    rates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draft:
    """A student that ran ahead of its teacher (speculative decoding, greedy), over all prompts.

    passes: of the teacher. proposed, accepted: the student's tokens. different: prompts whose text was not the teacher's own -> what its
    two likeliest tokens differ by at the first other token, in logits: rounding where that is next to nothing. seconds: of each prompt.
    """

    passes: int
    proposed: int
    accepted: int
    different: Mapping[str, float]
    seconds: Sequence[float]


@dataclass(frozen=True, slots=True)
class Drafts:
    """prompts, tokens: how many texts, and tokens of the teacher alone, which takes a pass for each. ahead: proposed a pass, at most.

    seconds: of the teacher alone, a prompt each. arms: "distilled", and "control" where there is one: the student of each that ships, or
    would. conditions: threads, precision and hardware in words.
    """

    prompts: int
    tokens: int
    ahead: int
    seconds: Sequence[float]
    arms: Mapping[str, Draft]
    conditions: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """One run, ready to be reported: what all tasks have in common.

    Attributes:
        name, metric: as in the recipe; metric is one of the task's (`auto` is settled before).
        seeds: arm -> its seeds' numbers: "distilled", and "control" unless the recipe has none.
        shipped: position in `seeds["distilled"]` of the seed that ships (best by validation).
        teacher, student: sizes.
        split: `Split.describe()`.
        control: "no_teacher", "init_only" or "none". control_reason: what the recipe gives as the reason for "none".
        curves: rows of metrics.jsonl: "arm", "seed", "step" (and "epoch"), other numeric fields are series by name.
        selftest: rows {"check", "result", "figure"} of the self-test, passed on as they are.
        gates: as in the recipe, e.g. {"min_kept": 0.95, "verdict": ["helps"]} (`evaluation.claims.check_gates`).
        provenance: passed on as it is (recipe, fingerprints, versions, hardware, rights, command to reproduce).
        exports: one row an artefact, passed on as it is. latency: None where nothing was timed.
        quantised: what training with quantisation gave (`stages.aware.Trained.table`), None without one.
        self_taught: the teacher is the student's own past, average or deeper part: what is kept of it says nothing.
        notes: sentences that the report has to show (unlabelled rows used, a resume that was not bit-exact, ...).

    Raises DataError where there is no distilled arm, or `shipped` names none of its seeds.
    """

    task: ClassVar[str]
    name: str
    metric: str
    shipped: int
    teacher: Size
    student: Size
    split: Mapping[str, Any] = field(default_factory=dict)
    control: str = "no_teacher"
    control_reason: str = ""
    curves: Sequence[Mapping[str, Any]] = ()
    selftest: Sequence[Mapping[str, Any]] = ()
    gates: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    exports: Sequence[Mapping[str, Any]] = ()
    latency: Latency | None = None
    quantised: Mapping[str, Any] | None = None
    self_taught: bool = False
    notes: Sequence[str] = ()

    @property
    def seeds(self) -> dict[str, tuple[int, ...]]:
        """Arm -> its seeds."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        if not {"distilled"} <= set(self.seeds) <= {"control", "distilled"}:
            raise DataError(four_parts(
                "the arms can't be reported", got=sorted(self.seeds), expected='"distilled", and "control" where there is one',
                otherwise="There would be nothing to compare", do="Train the distilled arm and a control"))
        if not 0 <= self.shipped < len(self.seeds["distilled"]):
            raise DataError(four_parts("shipped names no seed", got=self.shipped, expected=f"0..{len(self.seeds['distilled']) - 1}",
                                       otherwise="Gates would test another student than the one that ships", do="Give a position in seeds"))


def same_shapes(shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """DataError for the first {what: (got, expected)} that differ."""
    for what, (got, expected) in shapes.items():
        if got != expected:
            raise DataError(four_parts(
                f"{what} has the wrong shape", got=got, expected=expected,
                otherwise="Rows of different examples would be compared", do="Give one row an example and class"))


@dataclass(frozen=True, slots=True)
class Arm:
    """What the students of one arm said, every seed of it.

    logits_test: (S, n, C) float. logits_val: (S, m, C) float, m may be 0. seeds: (S,) the seeds' numbers, in that order.
    """

    logits_test: np.ndarray
    logits_val: np.ndarray
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """A corruption of inputs at a severity of 1 to 5, and in words what that is."""

    shift: str
    severity: int
    words: str


@dataclass(frozen=True, slots=True)
class Shifted:
    """What the models said of the same test rows under K conditions.

    rows: (r,) positions among the test rows, all labelled. teacher: (K, r, C) log-probabilities; None, and `why_not` says why, where it
    could not be asked again. arms: arm -> (K, S, r, C) logits. artefacts: format -> (1 + K, r, C) logits of a quantised artefact, on the
    plain rows first.
    """

    rows: np.ndarray
    conditions: tuple[Condition, ...]
    teacher: np.ndarray | None
    arms: Mapping[str, np.ndarray]
    artefacts: Mapping[str, np.ndarray] = field(default_factory=dict)
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Classification(Facts):
    """What classifiers said.

    Attributes:
        classes: (C,) names. groups: class name -> group name, may be empty or leave classes out.
        class_counts: (C,) labelled training rows of each class (the trivial predictor and the positive class come from it).
        class_weights: (C,) how much a class counts in the metric; None is equal.
        ids_test: (n,) str. labels_test: (n,) int, -1 is unlabelled (left out of every figure). labels_val: (m,).
        outside: (n,) bool, unlabelled test rows that belong to no class: how confidence tells them apart is measured; empty: none.
        teacher_log_probs_test, teacher_log_probs_val: (n, C), (m, C) natural logarithms at T = 1 (`Knowledge.log_probs(1.0)`).
        teacher_tempered_test: {T: (n, C) log-probabilities}; empty: made from the rows at T = 1, which is exact for one member.
        temperature: the objective's temperature, 1.0 where it has none.
        arms: "distilled", and "control" unless the recipe has none.
        unrecovered_test: (n, C) logits of a pruned student before its first step; None for a student that is not pruned.
        duplicates: positions of the test rows that are also in train.
        clusters: (n,) int, rows of one number are of one speaker or device: they count as one item; empty: every row is its own.
        sensitive: column -> (n,) str, the group of each test row, "" where it is not known; empty: nothing to compare by groups.
        artefacts_test: format -> (n, C) logits of a quantised artefact; only where there are groups to compare.
        shifted: answers on spoilt rows; None where the recipe does not ask for them.
        thumbnail: test row's position -> PNG bytes, or text for rows that are no image; None: no pictures.

    Raises DataError where shapes do not agree.
    """

    task: ClassVar[str] = "classification"
    classes: tuple[str, ...]
    class_counts: np.ndarray
    ids_test: np.ndarray
    labels_test: np.ndarray
    labels_val: np.ndarray
    teacher_log_probs_test: np.ndarray
    teacher_log_probs_val: np.ndarray
    arms: Mapping[str, Arm]
    outside: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=bool))
    groups: Mapping[str, str] = field(default_factory=dict)
    class_weights: Sequence[float] | None = None
    teacher_tempered_test: Mapping[float, np.ndarray] = field(default_factory=dict)
    temperature: float = 1.0
    unrecovered_test: np.ndarray | None = None
    duplicates: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    clusters: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sensitive: Mapping[str, np.ndarray] = field(default_factory=dict)
    artefacts_test: Mapping[str, np.ndarray] = field(default_factory=dict)
    shifted: Shifted | None = None
    thumbnail: Callable[[int], bytes | str] | None = None

    @property
    def seeds(self) -> dict[str, tuple[int, ...]]:
        """Arm -> its seeds."""
        return {name: arm.seeds for name, arm in self.arms.items()}

    def __post_init__(self) -> None:
        super().__post_init__()
        n, m, c = len(self.labels_test), len(self.labels_val), len(self.classes)
        shapes = {"class_counts": (np.shape(self.class_counts), (c,)), "ids_test": (np.shape(self.ids_test), (n,)),
                  "teacher_log_probs_test": (np.shape(self.teacher_log_probs_test), (n, c)),
                  "teacher_log_probs_val": (np.shape(self.teacher_log_probs_val), (m, c))}
        if self.unrecovered_test is not None:
            shapes["unrecovered_test"] = (np.shape(self.unrecovered_test), (n, c))
        for name, arm in self.arms.items():
            shapes[f"arms.{name}.logits_test"] = (np.shape(arm.logits_test), (len(arm.seeds), n, c))
            shapes[f"arms.{name}.logits_val"] = (np.shape(arm.logits_val), (len(arm.seeds), m, c))
        shapes |= {f"artefacts_test.{name}": (np.shape(logits), (n, c)) for name, logits in self.artefacts_test.items()}
        shapes |= {f"sensitive.{name}": (np.shape(groups), (n,)) for name, groups in self.sensitive.items()}
        if self.shifted is not None:
            asked, k = self.shifted, len(self.shifted.conditions)
            shapes |= {f"shifted.arms.{name}": (np.shape(asked.arms[name]), (k, len(arm.seeds), len(asked.rows), c))
                       for name, arm in self.arms.items()}
            if asked.teacher is not None:
                shapes["shifted.teacher"] = (np.shape(asked.teacher), (k, len(asked.rows), c))
        same_shapes(shapes)


@dataclass(frozen=True, kw_only=True)
class Language(Facts):
    """How well models of text told what comes next, counted by document (`evaluation.language.COLUMNS`).

    Attributes:
        documents: (D,) names of the test documents. sizes: (D,) bytes of UTF-8 of each, as far as they were read.
        told: arm -> (S, D, K) tallies. numbers: arm -> the seeds' numbers.
        teacher_told, trivial_told: (D, K). trivial: tokens by their frequency in the training rows.
        agreement, kl_nats: arm -> (S,): share of positions with the teacher's first answer, and the mean KL(teacher || student), over
            `compared` positions; empty where the teacher's rows are not at hand.
        own_kl: arm -> (S,), mean KL(student || teacher) on what each student writes itself, `own_tokens` of all together; empty where that
            was not asked.
        drafts: students that ran ahead of the teacher; None where the recipe does not ask for it.
    """

    task: ClassVar[str] = "language"
    documents: np.ndarray
    sizes: np.ndarray
    told: Mapping[str, np.ndarray]
    numbers: Mapping[str, tuple[int, ...]]
    teacher_told: np.ndarray
    trivial_told: np.ndarray
    agreement: Mapping[str, np.ndarray] = field(default_factory=dict)
    kl_nats: Mapping[str, np.ndarray] = field(default_factory=dict)
    compared: int = 0
    own_kl: Mapping[str, np.ndarray] = field(default_factory=dict)
    own_tokens: int = 0
    drafts: Drafts | None = None

    @property
    def seeds(self) -> dict[str, tuple[int, ...]]:
        """Arm -> its seeds."""
        return dict(self.numbers)

    @property
    def shared(self) -> np.ndarray:
        """(D,) among what a document's bits are shared out: its bytes."""
        return self.sizes

    def __post_init__(self) -> None:
        super().__post_init__()
        d, k = len(self.documents), len(COLUMNS)
        shapes = {"sizes": (np.shape(self.sizes), (d,)), "teacher_told": (np.shape(self.teacher_told), (d, k)),
                  "trivial_told": (np.shape(self.trivial_told), (d, k))}
        for name, told in self.told.items():
            shapes[f"told.{name}"] = (np.shape(told), (len(self.numbers[name]), d, k))
        same_shapes(shapes)


@dataclass(frozen=True, kw_only=True)
class Masked(Language):
    """How well models of text told which tokens were hidden."""

    task: ClassVar[str] = "masked"

    @property
    def shared(self) -> np.ndarray:
        """(D,) among what a document's bits are shared out: the tokens of it that were hidden."""
        return self.teacher_told[:, COLUMNS.index("positions")]


@dataclass(frozen=True, kw_only=True)
class Embedding(Facts):
    """How alike models held the sentences of test pairs, beside what people said.

    Attributes:
        sentences: (P, 2) str. scores: (P,) people's, larger is more alike.
        said: arm -> (S, P) cosines. numbers: arm -> the seeds' numbers. teacher_said: (P,).
        overlap_said: (P,) share of words that both sentences have.
        hard: places of the pairs that stand beside the average, chosen without any model; hard_name: what they are called.
        widths: "teacher", "student" -> how many numbers a vector has.
    """

    task: ClassVar[str] = "embedding"
    sentences: np.ndarray
    scores: np.ndarray
    said: Mapping[str, np.ndarray]
    numbers: Mapping[str, tuple[int, ...]]
    teacher_said: np.ndarray
    overlap_said: np.ndarray
    hard: np.ndarray
    hard_name: str
    widths: Mapping[str, int]

    @property
    def seeds(self) -> dict[str, tuple[int, ...]]:
        """Arm -> its seeds."""
        return dict(self.numbers)

    def __post_init__(self) -> None:
        super().__post_init__()
        p = len(self.scores)
        shapes = {"sentences": (np.shape(self.sentences), (p, 2)), "teacher_said": (np.shape(self.teacher_said), (p,)),
                  "overlap_said": (np.shape(self.overlap_said), (p,))}
        for name, said in self.said.items():
            shapes[f"said.{name}"] = (np.shape(said), (len(self.numbers[name]), p))
        same_shapes(shapes)
