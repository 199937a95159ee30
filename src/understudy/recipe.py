"""The recipe: typed, frozen, complete. YAML + dotted overrides -> `Recipe`.

An unknown key is refused with the nearest known one, file and line.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from understudy import kinds
from understudy.errors import RecipeError, four_parts
from understudy.evaluation import claims, metrics
from understudy.rights.terms import Rights
from understudy.tree import Dumper, Loader, apply, fields_of, joined, line_numbers, parse, plain, put

LISTS = ("teacher", "objective")
"""Sections that may be written as one mapping instead of a list of one."""
Where = Callable[[Iterable[Any]], str]
"""`file:line` of a path of keys."""
GIVEN = "given"
"""The kind of data, teacher or model that comes as a Python object instead of being named."""


LIVING = ("averaged", "peers", "online", "itself")
"""Kinds of teacher that change while the student learns, or are it: nothing of them can be recorded before."""
OWN = (*LIVING, "generations")
"""Kinds of teacher that the recipe trains from nothing but the data."""


Rights.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]  # else a misspelt `licence` would be dropped


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Split(_Part):
    """Shares of the examples kept apart; a split that the data set brings is used as it is.

    `validation: 0`: the last weights are kept, there is no early stop, and seed 0 ships.
    """

    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float | None = Field(default=None, gt=0, lt=1)
    seed: int = 0


class Augment(_Part):
    """Replayable augmentation in pixels; `views` is how many views of each example the store keeps."""

    crop: int = Field(default=0, ge=0)
    flip: bool = False
    jitter: int = Field(default=0, ge=0)
    noise: float = Field(default=0.0, ge=0)
    views: int = Field(default=4, ge=1)


class Generator(_Part):
    """A network that makes pictures for `data.transfer.source: generated`, trained against the teacher while the student learns.

    latent: length of its noise. width: channels of its first map. lr: its learning rate (Adam). The others weigh its losses: one_hot, the
    teacher is sure; activation, the teacher's last features are large; information, classes come equally often (Chen et al. 2019, arXiv
    1904.01186); statistics, batch norm's inputs are as in training (Yin et al. 2020, arXiv 1912.08795); adversarial, the student
    disagrees with the teacher (Fang et al. 2019, arXiv 1912.11006).
    """

    latent: int = Field(default=100, ge=1)
    width: int = Field(default=64, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    one_hot: float = Field(default=1.0, ge=0)
    activation: float = Field(default=0.1, ge=0)
    information: float = Field(default=5.0, ge=0)
    statistics: float = Field(default=1.0, ge=0)
    adversarial: float = Field(default=0.0, ge=0)


class Rollouts(_Part):
    """Who continues the beginnings of training rows, and how, for `data.transfer.source: rollouts` (the student, again and again while it
    learns) or `teacher` (the teacher, once).

    prompt: tokens of the beginning, at most. tokens: those behind it, at most. temperature: of the draws; 0 is greedy, for the teacher.
    share: of the student's, the probability that a step trains on them in place of the rows (lambda of Agarwal et al. 2024, arXiv
    2306.13649, algorithm 1). after: the share of all steps that train on the rows alone before it writes for the first time. reuse: steps
    that train on each of its texts before it writes again.
    """

    share: float = Field(default=0.5, gt=0, le=1)
    after: float = Field(default=0.0, ge=0, lt=1)
    prompt: int = Field(default=64, ge=1)
    tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=1.0, ge=0)
    reuse: int = Field(default=1, ge=1)


class Transfer(_Part):
    """What the students see of the training examples: `examples` is the share of them, `labels` the share of those that keep
    their label (the rest is unlabelled), `omit` and `only` leave classes out. Shares are stratified by class.

    source: "examples"; for a distilled arm without data "noise", inputs drawn from a normal distribution, or "generated"; of running text
    "rollouts", the student's own texts and the rows in turns, or "teacher", the teacher's texts.
    """

    source: Literal["examples", "noise", "generated", "rollouts", "teacher"] = "examples"
    generator: Generator = Generator()
    rollouts: Rollouts = Rollouts()
    examples: float = Field(default=1.0, gt=0, le=1)
    labels: float = Field(default=1.0, gt=0, le=1)
    omit: tuple[str, ...] = ()
    only: tuple[str, ...] = ()


class Data(BaseModel):
    """Where examples come from; further fields belong to the kind (`understudy recipes schema` lists them).

    groups: class -> group, for the severity of errors (a fox for a dog is not a pizza for a dog).
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: str
    split: Split = Split()
    groups: dict[str, str] = {}
    augment: Augment | None = None
    transfer: Transfer = Transfer()

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own fields."""
        return dict(self.model_extra or {})


class Training(_Part):
    """How a model is trained. `epochs` or `steps`; `auto` values are settled once and written into the resolved recipe."""

    epochs: float = Field(default=30, gt=0)
    steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    warmup: float = Field(default=0.0, ge=0, lt=1)
    clip: float | None = Field(default=None, gt=0)
    ema: float | None = Field(default=None, gt=0, lt=1)
    patience: int | None = Field(default=None, ge=1)
    augment: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    compile: Literal["auto"] | bool = "auto"


class StudentTraining(Training):
    """Training of the arms. seeds: how many; auto is 10 where a run takes under 5 s, else 3. control: what distilling is compared with.

    balance: `gradnorm` multiplies the weights of the teacher's terms once, so that at the first step each pulls as much, for its weight, as
    the labels' term, whose weight stays; what was found is in the report.
    """

    seeds: Literal["auto"] | Annotated[int, Field(ge=1, le=1000, strict=True)] = "auto"
    balance: Literal["none", "gradnorm"] = "none"
    control: Literal["no_teacher", "init_only", "none"] = "no_teacher"
    control_reason: str = ""
    class_weights: Literal["none", "balanced"] = "none"
    threads: Literal["auto"] | Annotated[int, Field(ge=1, strict=True)] = "auto"


class Teacher(BaseModel):
    """One teacher; further fields belong to the kind. `stated` is what its owner says of it, for the self-test to compare."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)
    kind: str
    rights: Rights = Rights()
    stated: Mapping[str, float] = {}

    @property
    def options(self) -> dict[str, Any]:
        """The kind's own fields."""
        return dict(self.model_extra or {})


class Reader(_Part):
    """How a model turns texts into tokens. Each model reads with its own tokenizer: the teacher's need not be the student's.

    kind: "folder", that of `path` as it is; "pruned", with the tokens of the training texts alone (WordPiece only); "bpe" or "words",
    trained on the training texts; "auto", that of the student's own folder, else that of the teacher's, pruned, else bpe. path: a folder in
    the Hugging Face layout, by default the teacher's. size: most tokens of one that is trained. lowercase: drop capitals, of one that is
    trained; by default where texts are classified. length: most tokens of a text; by default those of the longest training text, up to 512.
    corpus: other text to train it on than the training texts, as fields of `data: corpus`.
    """

    kind: Literal["auto", "folder", "pruned", "bpe", "words"] = "auto"
    path: str | None = None
    size: int = Field(default=8000, ge=300)
    lowercase: bool | None = None
    length: int | None = Field(default=None, ge=4)
    corpus: dict[str, Any] | None = None


class FromTeacher(_Part):
    """A student cut out of its teacher, a pretrained model or a decoder, whose weights it starts with: both arms do, so that the question
    is what distilling adds.

    layers: how many, at equal distances, the first and last among them; or their numbers from 0. width: of the residual stream, a multiple
    of the teacher's head size; of `causal` any. heads: of attention; by default as many as fill the width, of `causal` all. inner: units of
    each feed-forward layer. Where these are smaller than the teacher's, the parts that say most on training texts are kept. Embeddings are
    those of the student's tokens.
    static: in place of layers, of a teacher of sentence vectors: a table of so many numbers a token, from what it says of each token alone.
    """

    layers: int | tuple[int, ...] | None = None
    width: int | None = Field(default=None, ge=1)
    heads: int | None = Field(default=None, ge=1)
    inner: int | None = Field(default=None, ge=1)
    static: int | None = Field(default=None, ge=2)

    @model_validator(mode="after")
    def _one_way(self) -> FromTeacher:
        if (self.layers is None) == (self.static is None) or (self.static is not None and (self.width or self.heads or self.inner)):
            raise RecipeError(four_parts(
                "student.from_teacher says two things, or nothing", got=", ".join(name for name, value in self if value) or "neither",
                expected="layers, with width, heads and inner where it shall be narrower; or static alone",
                otherwise="It would not be known what is cut out", do="Use {layers: 3}, or {static: 256}"))
        return self


class Student(_Part):
    """The model to train: an architecture, start weights, and `match_prior`: classes whose bias is set, after training, so that
    their mean probability over the unlabelled training inputs equals their share there (Hinton et al. 2015, section 3).

    tokenizer: where the data is text. from_teacher: in place of a model."""

    model: dict[str, Any] | Literal["auto"] = {}
    from_teacher: FromTeacher | None = None
    tokenizer: Reader = Reader()
    weights: str | None = None
    match_prior: tuple[str, ...] = ()


class Store(_Part):
    """What is kept of the teacher's answers.

    keep: all logits of a row ("dense"), its k largest and the mass of the rest ("topk"), or none ("live": the teacher is asked in every
        step); of running text for each token as many as `token_bytes` hold ("tokens"), or the state before the teacher's output layer, and
        that layer once ("states"). "auto" is dense, and tokens where text is told.
    dtype: of logits and of states. token_bytes: what each token of running text takes.
    features: how the layers that objectives match are kept, each in a store of its own; "live" keeps none and asks the teacher in every
        step. limit_gb: 10^9 bytes that they, or the states, may take together; a run that would need more is refused before it asks.
    """

    keep: Literal["auto", "dense", "topk", "tokens", "states", "live"] = "auto"
    dtype: Literal["float32", "float16"] = "float32"
    k: int = Field(default=64, ge=1)
    token_bytes: int = Field(default=300, ge=32)
    features: Literal["float16", "int8", "float32", "live"] = "float16"
    limit_gb: float = Field(default=8.0, gt=0)


class Draft(_Part):
    """The shipped student as a draft for its teacher: greedy speculative decoding of test texts, which must give the teacher's own words.

    prompts: how many test rows are continued, at most those there are. prompt: tokens of their beginnings, at most. tokens: those behind,
    at most. ahead: tokens that the draft proposes for each pass of the teacher.
    """

    prompts: int = Field(default=200, ge=2)
    prompt: int = Field(default=32, ge=1)
    tokens: int = Field(default=64, ge=1)
    ahead: int = Field(default=4, ge=1)


class Series(_Part):
    """The same recipe at several values of one dotted key: a run each, and one plot of control and distilled over the values."""

    key: str
    values: tuple[Any, ...] = Field(min_length=2)


class Sweep(_Part):
    """What `understudy compare` varies: the values of dotted keys, in all combinations (`grid`), in `trials` of them (`random`), or in all
    of them with short runs first, of which each rung keeps the best `eta`-th part by validation (`halving`)."""

    method: Literal["grid", "random", "halving"] = "grid"
    over: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    trials: int = Field(default=12, ge=1)
    eta: int = Field(default=3, ge=2)
    seeds: int = Field(default=3, ge=1, le=1000)


class Recipe(_Part):
    """One run, whole.

    gates: what the shipped student must reach, else exit 4; `evaluation.claims` lists what can be bounded.
    metric_weights: how much a class counts in the metric, by its name; 1 where it is not named.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    data: Data
    teacher: tuple[Teacher, ...] = Field(min_length=1)
    teacher_weights: tuple[float, ...] | Literal["learnt", "per_example"] | None = None
    student: Student
    objective: tuple[dict[str, Any], ...] = Field(min_length=1)
    training: StudentTraining = StudentTraining()
    metric: str = "auto"
    metric_weights: dict[str, float] = {}
    store: Store = Store()
    export: tuple[str, ...] = ("safetensors",)
    gates: dict[str, Any] = {}
    draft: Draft | None = None
    series: Series | None = None
    sweep: Sweep | None = None


def load(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a file, a packaged recipe's name, or a mapping, with `a.b=value` overrides on top. Raises RecipeError."""
    if isinstance(source, Mapping):
        return build(plain(source), {}, "recipe", overrides)
    path = Path(source)
    if not path.is_file() and str(source) in packaged():
        path = packaged()[str(source)]
    if not path.is_file():
        raise RecipeError(
            kinds.unknown("recipe", str(source), packaged()).replace(
                "A setting that is not known would be ignored without a word", "It is neither a file nor a packaged recipe"
            )
        )
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=Loader)
        lines = line_numbers(node, str(path))
        tree = plain(parse(text))  # plain() also parts what an alias shares, so that an override changes one place
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise RecipeError(
            four_parts(
                f"{where}: this is not readable YAML",
                got=str(getattr(error, "problem", error)),
                expected="a YAML mapping",
                otherwise="Nothing of the recipe could be used",
                do="Correct the line; `understudy recipes show digits` is an example",
            )
        ) from None
    if not isinstance(tree, dict):
        raise RecipeError(
            four_parts(
                f"{path}: the recipe is not a mapping",
                got=type(tree).__name__,
                expected="keys such as data, teacher, student",
                otherwise="There would be nothing to run",
                do="Start from `understudy recipes copy digits`",
            )
        )
    return build(tree, lines, str(path), overrides)


def build(tree: dict[str, Any], lines: Mapping[tuple[Any, ...], int], file: str, overrides: Sequence[str] = ()) -> Recipe:
    """Check a tree of plain values and complete it: every default of every kind is filled in."""
    tree = dict(tree)
    for override in overrides:
        for key in LISTS:
            if override.startswith(f"{key}.0") and isinstance(tree.get(key), Mapping):
                tree[key] = [tree[key]]
        apply(tree, override)
    for key in LISTS:
        if isinstance(tree.get(key), Mapping):
            tree[key] = [tree[key]]

    def where(path: Iterable[Any]) -> str:
        parts = tuple(path)
        if parts[1:2] == (0,) and parts[:2] not in lines:  # one mapping was written instead of a list
            parts = (parts[0], *parts[2:])
        while parts and parts not in lines:
            parts = parts[:-1]
        return f"{file}:{lines[parts]}" if parts in lines else file

    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_first(error, tree, where)) from None
    return _complete(recipe, where)


def _complete(recipe: Recipe, where: Where) -> Recipe:
    """The recipe with every kind's fields checked and written out."""
    data = _kind("datasets", recipe.data.kind, recipe.data.options, where, ("data",), ("kind", *Data.model_fields))
    student = _student(recipe.student, where)
    if recipe.training.control == "none" and not recipe.training.control_reason.strip():
        raise RecipeError(
            four_parts(
                f"{where(('training', 'control'))}: control: none needs a reason",
                got="no control_reason",
                expected="a sentence",
                otherwise="The report could not say why nobody knows whether distilling helped",
                do="Set training.control_reason",
            )
        )
    alone = [one.kind for one in recipe.teacher if one.kind in LIVING]
    if alone and len(recipe.teacher) > 1:
        raise RecipeError(
            four_parts(
                f"{where(('teacher',))}: a teacher of kind {alone[0]} stands alone",
                got=f"{len(recipe.teacher)} teachers",
                expected="one",
                otherwise="Its answers would be averaged with those of a fixed teacher before it knows anything",
                do="Name it alone",
            )
        )
    if recipe.metric != "auto" and recipe.metric not in metrics.NAMES:
        raise RecipeError(kinds.unknown("metric", recipe.metric, ("auto", *metrics.NAMES), where(("metric",))))
    gates = {name: want for name, want in recipe.gates.items() if want is not None}
    claims.check_gates(gates, f"{where(('gates',))}: gates")
    if isinstance(recipe.teacher_weights, tuple):
        from understudy.teachers.ensemble import check_weights  # imports torch

        check_weights(len(recipe.teacher), recipe.teacher_weights)
    for index, name in enumerate(recipe.export):
        kinds.find("export", name, where(("export", index)))
    return recipe.model_copy(
        update={
            "data": Data.model_validate({**recipe.data.model_dump(exclude=set(recipe.data.options)), **data}),
            "teacher": tuple(_teacher(teacher, ("teacher", index), index, where) for index, teacher in enumerate(recipe.teacher)),
            "objective": tuple(_objective(entry, ("objective", index), where) for index, entry in enumerate(recipe.objective)),
            "student": student,
            "gates": gates,
        }
    )


def _teacher(teacher: Teacher, path: tuple[Any, ...], seed: int, where: Where) -> Teacher:
    options = dict(teacher.options)
    rights = Rights(terms="own", basis="trained by the recipe") if teacher.kind in OWN and teacher.rights == Rights() else teacher.rights
    for name in teacher.stated:
        if name not in metrics.NAMES:
            raise RecipeError(kinds.unknown(f"metric in {joined(path)}.stated", name, metrics.NAMES, where((*path, "stated", name))))
    if teacher.kind == "ensemble":
        raise RecipeError(
            four_parts(
                f"{where(path)}: teacher: an ensemble is written as a list",
                got="kind: ensemble",
                expected="teacher: [{...}, {...}]",
                otherwise="Members would not be checked one by one",
                do="Write the members as a YAML list",
            )
        )
    if teacher.kind == "local":
        options["seed"] = options["seed"] if options.get("seed") is not None else seed
        training = options.get("train")
        arch = options["model"].get("arch") if isinstance(options.get("model"), Mapping) else None
        ready = options.get("weights") or arch in kinds.READY
        options["train"] = None if ready and not training else _training({} if training is None else training, where, path)
        if options.get("model") is not None:
            options["model"] = model(options["model"], where, (*path, "model"))
        if options.get("tokenizer") is not None:
            options["tokenizer"] = _reader(options["tokenizer"], where, (*path, "tokenizer"))
    elif teacher.kind in ("online", "generations") and options.get("train") is not None:
        options["train"] = _training(options["train"], where, path)
    if teacher.kind == "online" and options.get("model") is not None:
        options["model"] = model(options["model"], where, (*path, "model"))
    if teacher.kind == "peers":
        options["models"] = [model(one, where, (*path, "models", at)) for at, one in enumerate(options.get("models") or ())]
        if options["models"] and "count" not in options:
            options["count"] = len(options["models"]) + 1
    configured = _kind("teachers", teacher.kind, options, where, path, tuple(Teacher.model_fields))
    if teacher.kind == "assistants":
        configured |= _assistants(configured, path, seed, where)
        rights = Rights(**configured["of"]["rights"]) if rights == Rights() else rights  # its words are passed down the chain
    if configured.get("objective"):
        configured["objective"] = [_objective(entry, (*path, "objective", at), where) for at, entry in enumerate(configured["objective"])]
    return Teacher.model_validate({"kind": teacher.kind, "rights": rights, "stated": dict(teacher.stated), **configured})


def _reader(options: Any, where: Where, path: tuple[Any, ...]) -> dict[str, Any]:
    """The complete section of a teacher's tokenizer at this path."""
    try:
        found = Reader.model_validate(options)
    except ValidationError as error:
        raise RecipeError(_first(error, options, where, path, Reader)) from None
    return plain(_corpus(found, where, path).model_dump())


def _corpus(reader: Reader, where: Where, path: tuple[Any, ...]) -> Reader:
    """With the fields of the text that it is trained on."""
    if reader.corpus is None:
        return reader
    return reader.model_copy(update={"corpus": _kind("datasets", "corpus", reader.corpus, where, (*path, "corpus"), ())})


def _assistants(options: Mapping[str, Any], path: tuple[Any, ...], seed: int, where: Where) -> dict[str, Any]:
    """The first teacher and every stage of a chain, checked and complete."""
    try:
        first = Teacher.model_validate(options["of"])
    except ValidationError as error:
        raise RecipeError(_first(error, options["of"], where, (*path, "of"), Teacher)) from None
    stages = []
    for at, stage in enumerate(options["through"]):
        here = (*path, "through", at)
        for key in stage:
            if key not in ("model", "train"):
                raise RecipeError(kinds.unknown(f"field in {joined(here)}", key, ("model", "train"), where((*here, key))))
        stages.append({"model": model(stage["model"], where, (*here, "model")), "train": _training(stage.get("train") or {}, where, here)})
    return {"of": plain(_teacher(first, (*path, "of"), seed, where).model_dump()), "through": stages}


def _objective(entry: Mapping[str, Any], path: tuple[Any, ...], where: Where) -> dict[str, Any]:
    if "kind" not in entry:
        raise RecipeError(
            four_parts(
                f"{where(path)}: objective has no kind",
                got=", ".join(entry) or "nothing",
                expected="kind: logits.SoftTargets or another of " + ", ".join(kinds.objective_names()),
                otherwise="There would be no loss",
                do="Add kind:",
            )
        )
    options = {key: value for key, value in entry.items() if key != "kind"}
    return {"kind": entry["kind"], **_kind("objectives", entry["kind"], options, where, path, ("kind",))}


def model(spec: Any, where: Where, path: tuple[Any, ...]) -> dict[str, Any]:
    """A model's mapping, checked and complete: `{arch: ..., options}` or `{factory: "module:function"}`."""
    spot = f"{where(path)}: {joined(path)}"
    if not isinstance(spec, Mapping) or not {"factory", "arch"} & set(spec):
        raise RecipeError(
            four_parts(
                f"{spot} names no architecture",
                got=", ".join(spec) if isinstance(spec, Mapping) else repr(spec),
                expected="arch: one of " + ", ".join(kinds.names("models")),
                otherwise="There would be nothing to train",
                do="Write it as {arch: mlp, hidden: [64]}",
            )
        )
    if "factory" in spec:
        usable = isinstance(spec["factory"], str) and re.fullmatch(r"[\w.]+:\w+", spec["factory"])
        if set(spec) - {"factory", "options"} or not usable or not isinstance(spec.get("options", {}), Mapping):
            raise RecipeError(
                four_parts(
                    f"{spot}: factory is not usable",
                    got=dict(spec),
                    expected='factory: "module:function", and options: {...} where it takes some',
                    otherwise="Another function would be called",
                    do="Correct it; it runs only with --allow-code",
                )
            )
        return dict(spec)
    options = {key: value for key, value in spec.items() if key != "arch"}
    return {"arch": spec["arch"], **_kind("models", spec["arch"], options, where, path, ("arch",))}


def _student(student: Student, where: Where) -> Student:
    """With its model's fields; none yet where the model is to be cut out of the teacher."""
    if student.model == "auto":
        student = student.model_copy(update={"model": {}})
    student = student.model_copy(update={"tokenizer": _corpus(student.tokenizer, where, ("student", "tokenizer"))})
    assert not isinstance(student.model, str)
    arch = student.model.get("arch")  # an earlier run wrote down what it was
    written = {"decoder": "vocabulary", "static": "width"}.get(str(arch), "config")
    settled = arch in ("pretrained", "masked", "embedder", "causal", "decoder", "static") and student.model.get(written)
    if student.from_teacher is not None and student.model and not settled:
        raise RecipeError(
            four_parts(
                f"{where(('student', 'from_teacher'))}: the student has two models",
                got="model and from_teacher",
                expected="one of them",
                otherwise="One would be ignored without a word",
                do="Remove model, or from_teacher",
            )
        )
    if student.from_teacher is not None and not student.model:
        return student
    return student.model_copy(update={"model": model(student.model, where, ("student", "model"))})


def _kind(folder: str, kind: Any, options: Mapping[str, Any], where: Where, path: tuple[Any, ...], beside: Sequence[str]) -> dict[str, Any]:
    """All fields of a kind, checked and complete. `beside`: keys that may stand there too, for the nearest known one.

    `given` is an object that a Python caller hands over: it has no fields.
    """
    named = "arch" if folder == "models" else "kind"
    if kind == GIVEN and folder != "objectives":
        known: list[str] = []
    else:
        found = kinds.find(folder, kind if isinstance(kind, str) else repr(kind), f"{where((*path, named))}: {joined(path)}")
        known = [field.name for field in dataclasses.fields(found)]
    for key in options:
        if key not in known:
            raise RecipeError(kinds.unknown(f"field in {joined(path)} ({kind})", str(key), [*known, *beside], where((*path, key))))
    return fields_of(kinds.configure(folder, kind, options, f"{where(path)}: {joined(path)}")) if known or kind != GIVEN else {}


def members(recipe: Recipe) -> list[Recipe]:
    """The recipes of a series, one a value, named `<last part of the key>-<value>`."""
    assert recipe.series is not None
    found = []
    for value in recipe.series.values:
        tree = resolved(recipe) | {
            "series": None,
            "name": re.sub(r"[^A-Za-z0-9._-]", "_", f"{recipe.series.key.rpartition('.')[2]}-{value}"),
        }
        put(tree, recipe.series.key, value, f"series: {recipe.series.key}={value}")
        found.append(build(tree, {}, f"series of {recipe.name}"))
    names = [one.name for one in found]
    if len(set(names)) < len(names):
        raise RecipeError(
            four_parts(
                "two values of the series give the same run",
                got=", ".join(names),
                expected="one name a value",
                otherwise="One run would stand for both in the plot",
                do="Leave out the value that is there twice",
            )
        )
    return found


def resolved(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain YAML values; loading it again gives the same recipe."""
    tree: dict[str, Any] = plain(recipe.model_dump(mode="python"))
    if not tree["student"]["model"]:
        tree["student"]["model"] = "auto"  # `from_teacher`: settled when the data is there
    return tree


def to_yaml(tree: Mapping[str, Any]) -> str:
    """YAML text of a resolved recipe, keys in their order."""
    return yaml.dump(plain(tree), Dumper=Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted keys in which two resolved recipes differ; an `auto` that was settled since is no difference."""
    found = []
    for key in dict.fromkeys([*before, *now]):
        left, right = before.get(key), now.get(key)
        if (
            isinstance(left, list)
            and isinstance(right, list)
            and len(left) == len(right)
            and all(isinstance(item, Mapping) for item in [*left, *right])
        ):
            left, right = dict(enumerate(left)), dict(enumerate(right))
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += changed(left, right, f"{prefix}{key}.")
        elif left != right and right != "auto":
            found.append(f"{prefix}{key}")
    return found


def json_schema() -> dict[str, Any]:
    """JSON Schema of a recipe, with each kind's own fields under `$defs`."""
    from pydantic import TypeAdapter

    schema = Recipe.model_json_schema()
    definitions = schema.setdefault("$defs", {})
    for key in LISTS:
        part = schema["properties"][key]
        schema["properties"][key] = {"anyOf": [part, part["items"]]}
    named = [(folder, name) for folder in ("datasets", "models", "teachers") for name in kinds.names(folder)]
    for folder, name in [*named, *(("objectives", name) for name in kinds.objective_names())]:
        found = TypeAdapter(kinds.find(folder, name)).json_schema()
        definitions |= found.pop("$defs", {})  # where its references point to
        definitions[f"{folder}.{name}"] = found
    return schema


def packaged() -> dict[str, Path]:
    """The packaged recipes by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def _training(options: Any, where: Where, path: tuple[Any, ...]) -> dict[str, Any]:
    """The complete training section of a teacher at this path."""
    try:
        return plain(Training.model_validate(options).model_dump())
    except ValidationError as error:
        raise RecipeError(_first(error, options, where, (*path, "train"), Training)) from None


def _first(error: ValidationError, tree: Any, where: Where, above: tuple[Any, ...] = (), root: type[BaseModel] = Recipe) -> str:
    """The four-part message for what pydantic found: an unknown key first, since it often is why another one is missing."""
    found = error.errors()
    first = next((one for one in found if one["type"] in UNKNOWN), found[0])
    cause = first.get("ctx", {}).get("error")
    inside = _written(first["loc"], tree)
    path = (*above, *inside)
    if isinstance(cause, RecipeError):
        return f"{where(path)}: {cause}"
    if first["type"] in UNKNOWN:
        section = joined(path[:-1]) or "the recipe"
        return kinds.unknown(f"field in {section}", str(path[-1]), _fields(root, inside[:-1]), where(path))
    expected = [one["msg"].removeprefix("Input should be ") for one in found if _written(one["loc"], tree) == inside]
    return four_parts(
        f"{where(path)}: {joined(path) or 'the recipe'} is not usable",
        got="nothing" if first["type"] == "missing" else repr(first["input"]),
        expected=" or ".join(dict.fromkeys(expected)),
        otherwise="The run would use another value than the one written",
        do=f"Correct {joined(path) or 'it'}",
    )


UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""Pydantic's names for a key that nobody knows, in a model and in a dataclass."""


def _written(loc: tuple[Any, ...], tree: Any) -> tuple[Any, ...]:
    """Pydantic's place as a path of what was written: without the alternatives of a union; a missing key is the last one."""
    path: list[Any] = []
    for part in loc:
        if isinstance(tree, Mapping):
            path.append(part)
            tree = tree.get(part)
        elif isinstance(tree, list | tuple) and isinstance(part, int) and part < len(tree):
            path.append(part)
            tree = tree[part]
    return tuple(path)


def _fields(root: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """The names of the fields of the section at this path."""
    here: Any = root
    for part in path:
        if isinstance(part, int):
            continue
        annotation = here.model_fields[part].annotation if part in here.model_fields else None
        options = [one for one in (annotation, *getattr(annotation, "__args__", ())) if isinstance(one, type)]
        here = next((one for one in options if issubclass(one, BaseModel) or one is Rights), here)
    return list(here.model_fields) if issubclass(here, BaseModel) else [field.name for field in dataclasses.fields(here)]
