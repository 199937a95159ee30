"""A teacher that only predicts: a scikit-learn estimator, an ONNX file, or any object with `predict_proba`.

Its probabilities become logits by the logarithm, which is exact up to a shift that no objective sees. What they can't become is softer
than they are: an exact zero has no logarithm and is raised to `clip`.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from understudy.errors import DataError, RecipeError, four_parts
from understudy.preprocess import Preprocess
from understudy.records import Batch, Knowledge, StudentOutput
from understudy.teachers.local import digest

ESTIMATORS = {
    "RandomForestClassifier": "sklearn.ensemble", "ExtraTreesClassifier": "sklearn.ensemble",
    "GradientBoostingClassifier": "sklearn.ensemble", "HistGradientBoostingClassifier": "sklearn.ensemble",
    "LogisticRegression": "sklearn.linear_model", "KNeighborsClassifier": "sklearn.neighbors",
    "MLPClassifier": "sklearn.neural_network", "GaussianNB": "sklearn.naive_bayes"}
"""What a recipe may name. Support vector machines are missing: their probabilities come from another model and disagree with them."""

VOTERS = {"RandomForestClassifier": "n_estimators", "ExtraTreesClassifier": "n_estimators", "KNeighborsClassifier": "n_neighbors"}
"""Estimators whose probabilities are shares of votes, and the option that says how many votes."""

TAKEN = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(uint8)": np.uint8}
"""Types of an ONNX file's input that can be given."""

SMALLEST = 1e-7
"""Clip of estimators whose zeros are rounding: the relative precision of float32."""

Predict = Callable[[np.ndarray], Any]


@dataclass(frozen=True)
class Options:
    """What a recipe may say of a predictor: an estimator, trained here on the labelled training rows, or an ONNX file.

    estimator: one of `ESTIMATORS`; options: its arguments; seed: its random_state where it has one.
    onnx: path of a single-file model. output: what it gives; None: probabilities where the rows of a probe sum to one, else logits.
        output_name: which of several outputs. takes: "normalised" (the student's model input) or "encoded" (before scale and shift, as
        understudy's own export); None: encoded for a graph that takes uint8, else normalised.
    clip: smallest probability; None: for shares of n votes 1 / (classes * (n + 1)), as if one more voter had spread its vote
        evenly (Perks 1947), else 1e-7.
    """

    estimator: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    onnx: str | None = None
    output: Literal["probabilities", "logits"] | None = None
    output_name: str | None = None
    takes: Literal["normalised", "encoded"] | None = None
    clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.estimator is None) == (self.onnx is None):
            raise RecipeError(four_parts(
                "a predictor is an estimator or an ONNX file", got="both" if self.estimator else "neither", expected="one of them",
                otherwise="It would not be clear who teaches", do="Write estimator: HistGradientBoostingClassifier, or onnx: FILE"))
        if self.estimator is not None and self.estimator not in ESTIMATORS:
            raise RecipeError(four_parts(
                "unknown estimator", got=f'"{self.estimator}"', expected="one of " + ", ".join(ESTIMATORS),
                otherwise="A name that can lead to any class can run any code", do="Use one of those, or pass your own object from Python"))
        known = () if self.estimator is None else _class(self.estimator)().get_params()
        unknown = [name for name in self.options if name not in known]
        if unknown:
            raise RecipeError(four_parts(
                f"{self.estimator or 'an ONNX file'} has no option \"{unknown[0]}\"", got=unknown[0],
                expected="one of " + ", ".join(known) if known else "no options",
                otherwise="A setting that is not known would be ignored without a word", do="Correct its name"))
        if self.estimator is not None and (self.output or self.output_name or self.takes):
            raise RecipeError(four_parts(
                "output, output_name and takes belong to an ONNX file", got=f"estimator: {self.estimator}", expected="onnx: FILE",
                otherwise="The setting would be ignored without a word", do="Remove it"))
        check_clip(self.clip)


class Teacher:
    """Logits from answers in numpy.

    predict: (B, D) float32 -> (B, C) probabilities, or logits where `output` says so. flatten: whether pictures are given as rows.
    Raises DataError in `teach` where probabilities are none (negative, or rows that don't sum to one). What is called logits is passed
    on as it is, so that the self-test can see a mistake.
    """

    provides = frozenset({"logits"})

    def __init__(self, predict: Predict, fingerprint: str, clip: float = SMALLEST,
                 output: Literal["probabilities", "logits"] = "probabilities", flatten: bool = True) -> None:
        check_clip(clip)
        self.predict, self.clip, self.output, self.flatten = predict, clip, output, flatten
        self.fingerprint = digest([fingerprint, clip if output == "probabilities" else output])

    def teach(self, batch: Batch, outputs: StudentOutput | None = None) -> Knowledge:
        """(B, C) float32 logits for the batch: log(max(probability, clip))."""
        inputs = batch.inputs.detach().cpu().float().numpy()
        answers = np.asarray(self.predict(inputs.reshape(len(inputs), -1) if self.flatten else inputs), dtype=np.float64)
        if answers.ndim != 2 or len(answers) != len(inputs):
            raise DataError(four_parts(
                "the predictor's answer has the wrong shape", got=answers.shape, expected=f"({len(inputs)}, classes)",
                otherwise="Rows would go to other examples", do="Return one row of probabilities an example"))
        if self.output == "probabilities":
            wrong = ~is_probability(answers) & np.isfinite(answers).all(axis=1)
            if wrong.any():
                raise DataError(four_parts(
                    "the predictor gives no probabilities", got=f"a row {np.round(answers[wrong.argmax()][:5], 4).tolist()} ...",
                    expected="values from 0 to 1 that sum to 1",
                    otherwise="Their logarithm would be no logits", do="Return probabilities; for an ONNX file set output: logits"))
            answers = np.log(np.clip(answers, self.clip, 1.0))
        return Knowledge(logits=torch.from_numpy(answers.astype(np.float32)).to(batch.inputs.device))


def fit(options: Options, inputs: np.ndarray, labels: np.ndarray, classes: int, data_fingerprint: str) -> Teacher:
    """Train the recipe's estimator and make it a teacher.

    Args:
        inputs: (N, ...) float32 training rows as the student sees them. labels: (N,) int, -1 rows are left out.
        classes: how many there are, those without a training row too. data_fingerprint: of these rows and labels.

    Raises RecipeError for options that the estimator refuses.
    """
    import sklearn

    assert options.estimator is not None
    estimator = _class(options.estimator)(**arguments(options))
    rows = labels >= 0
    try:
        estimator.fit(inputs.reshape(len(inputs), -1)[rows], labels[rows])
    except (ValueError, TypeError) as error:
        raise RecipeError(four_parts(
            f"{options.estimator} can't be trained with these options", got=options.options, expected=str(error),
            otherwise="There would be no teacher", do="Correct the options")) from None
    clip = options.clip or smallest(estimator, classes)
    stated = digest(["predictor", options.estimator, {k: repr(v) for k, v in estimator.get_params().items()}, sklearn.__version__,
                     classes, data_fingerprint])
    return Teacher(in_order(estimator.predict_proba, estimator.classes_, classes), stated, clip)


def arguments(options: Options) -> dict[str, Any]:
    """What the recipe's estimator is made with: its options, and its seed where it takes one."""
    assert options.estimator is not None
    seeded = "random_state" in _class(options.estimator)().get_params()
    return {**({"random_state": options.seed} if seeded else {}), **options.options}


def from_onnx(options: Options, probe: np.ndarray, preprocess: Preprocess) -> Teacher:
    """The teacher behind an ONNX file.

    Args:
        probe: (N, ...) some real model inputs, on which it is seen what the file gives. preprocess: the student's.

    Raises DataError for a file that ONNX Runtime can't load or run on these inputs, and where the output is not clear. Weights in a second
    file are refused, since a fingerprint of this one would not see them change.
    """
    assert options.onnx is not None
    data = _bytes(options.onnx)
    session, given, encoded, output = _session(options, data)

    def predict(inputs: np.ndarray) -> np.ndarray:
        return session.run([output], {given.name: _taken(inputs, given, encoded, preprocess)})[0]

    try:
        answers = np.asarray(predict(probe), dtype=np.float64)
    except Exception as error:
        raise _unusable(options.onnx, str(error).splitlines()[0], f"a model for inputs of shape {probe.shape[1:]}") from None
    kind = options.output or ("probabilities" if answers.ndim == 2 and is_probability(answers).all() else "logits")
    stated = digest(["predictor", hashlib.sha256(data).hexdigest(), output, encoded, preprocess.to_dict() if encoded else None])
    return Teacher(predict, stated, options.clip or SMALLEST, kind, flatten=False)


def given_to(options: Options, inputs: np.ndarray, preprocess: Preprocess) -> tuple[np.ndarray, str]:
    """Model inputs as the graph of an ONNX file takes them, and the name of the output that is the answer. Raises as `from_onnx` does."""
    assert options.onnx is not None
    _, given, encoded, output = _session(options, _bytes(options.onnx))
    return _taken(inputs, given, encoded, preprocess), output


def _session(options: Options, data: bytes) -> tuple[Any, Any, bool, str]:
    """ONNX Runtime's session, its one input, whether that is encoded, and the output's name."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.log_severity_level = 4
    path = str(options.onnx)
    try:
        session = onnxruntime.InferenceSession(data, settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise _unusable(path, str(error).splitlines()[0], "a single-file model that ONNX Runtime can load") from None
    if len(session.get_inputs()) != 1:
        raise _unusable(path, f"{len(session.get_inputs())} inputs", "one input")
    given = session.get_inputs()[0]
    if given.type not in TAKEN or isinstance(given.shape[0], int):
        raise _unusable(path, f"input {given.name} of {given.type} {given.shape}", "float, double or uint8 with a dynamic batch")
    encoded = TAKEN[given.type] is np.uint8 if options.takes is None else options.takes == "encoded"
    return session, given, encoded, _output(options, session.get_outputs())


def _taken(inputs: np.ndarray, given: Any, encoded: bool, preprocess: Preprocess) -> np.ndarray:
    """Normalised model inputs as the graph's input has them: its type, and flat rows where it takes those."""
    dtype = TAKEN[given.type]
    if encoded:
        inputs = (inputs - preprocess.shift) / preprocess.scale
    if dtype is np.uint8:
        inputs = np.clip(np.rint(inputs), 0, 255)
    return np.ascontiguousarray(inputs.reshape(len(inputs), -1) if len(given.shape) == 2 else inputs, dtype=dtype)


def in_order(predict: Predict, known: Sequence[Any] | np.ndarray, classes: int, names: Sequence[str] | None = None) -> Predict:
    """`predict` with its columns in the order 0..classes-1; a class that the estimator never saw gets 0, which is clipped.

    known: `estimator.classes_`: label numbers, or names out of `names`. Raises DataError for a class that is neither.
    """
    labels = np.asarray(known).tolist()
    try:
        columns = [names.index(label) if names is not None and isinstance(label, str) else range(classes).index(label) for label in labels]
    except ValueError as error:
        raise DataError(four_parts(
            "the estimator knows a class that the data does not have", got=str(error),
            expected=f"0 to {classes - 1}, or the classes' names",
            otherwise="Its columns would be taken for other classes", do="Train it on this data set's labels")) from None

    def ordered(inputs: np.ndarray) -> np.ndarray:
        answers = np.asarray(predict(inputs), dtype=np.float64)
        result = np.zeros((len(answers), classes))
        result[:, columns] = answers
        return result

    return ordered


def fingerprint(predict: Predict, probe: np.ndarray) -> str:
    """What an object that can't be hashed is known by: sha256 of its answers on probe rows, to six decimals."""
    answers = np.round(np.asarray(predict(probe), dtype=np.float64), 6) + 0.0  # -0.0 and 0.0 are one answer
    return hashlib.sha256(str(answers.shape).encode() + answers.tobytes()).hexdigest()


def is_probability(rows: np.ndarray) -> np.ndarray:
    """(B,) bool: values from 0 to 1 that sum to 1, within 1e-3 (half precision)."""
    return (rows >= -1e-6).all(axis=1) & (np.abs(rows.sum(axis=1) - 1) < 1e-3)


def smallest(estimator: Any, classes: int) -> float:
    """The default clip for an estimator, or for any object with `predict_proba`; see `Options.clip`."""
    votes = VOTERS.get(type(estimator).__name__)
    return SMALLEST if votes is None else 1 / (classes * (getattr(estimator, votes) + 1))


def check_clip(clip: float | None) -> None:
    """RecipeError unless the clip is None or a small probability."""
    if clip is not None and not 0 < clip <= 0.1:
        raise RecipeError(four_parts(
            "clip must be a small probability", got=clip, expected="0 < clip <= 0.1",
            otherwise="A zero has no logarithm, and a large clip hides what the teacher knows", do="Leave it out, or use 1e-4"))


def _class(name: str) -> Any:
    return getattr(importlib.import_module(ESTIMATORS[name]), name)


def _bytes(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unusable(path, (error.strerror or type(error).__name__).lower(), "a readable file") from None


def _output(options: Options, outputs: Sequence[Any]) -> str:
    """The name of the output that holds rows over classes."""
    rows = [item.name for item in outputs if item.type.startswith("tensor(float") or item.type == "tensor(double)"]
    if options.output_name is not None:
        rows = [name for name in rows if name == options.output_name]
    if len(rows) != 1:
        found = ", ".join(f"{item.name} {item.type}" for item in outputs)
        raise _unusable(str(options.onnx), f"{len(rows)} outputs of numbers among {found}", "one, or output_name: NAME to choose it")
    return rows[0]


def _unusable(path: str, got: str, expected: str) -> DataError:
    return DataError(four_parts(f'"{path}" can\'t teach', got=got, expected=expected, otherwise="There would be nothing to learn from",
                                do="Export the teacher as one ONNX file with a dynamic batch"))
