"""The sections of a recipe: what may stand in it, of which type, with which default.

A field belongs to a section here, or to the kind that the section names (then it is a field of that kind's class).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from understudy.errors import RecipeError, four_parts
from understudy.rights.terms import Rights

GIVEN = "given"
"""The kind of data, teacher or model that comes as a Python object instead of being named."""


LIVING = ("averaged", "peers", "online", "itself")
"""Kinds of teacher that change while the student learns, or are it: nothing of them can be recorded before."""
OWN = (*LIVING, "generations")
"""Kinds of teacher that the recipe trains from nothing but the data."""


Rights.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]  # else a misspelt `licence` would be dropped


class Part(BaseModel):
    """What all sections have in common: no unknown field, no change, no infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Split(Part):
    """Shares of the examples kept apart; a split that the data set brings is used as it is.

    `validation: 0`: the last weights are kept, there is no early stop, and seed 0 ships. copies: what becomes of training rows that are
    validation or test rows as well, value for value; of running text they are always dropped.
    """

    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float | None = Field(default=None, gt=0, lt=1)
    seed: int = 0
    copies: Literal["keep", "drop"] = "keep"


class Augment(Part):
    """Replayable augmentation in pixels; `views` is how many views of each example the store keeps."""

    crop: int = Field(default=0, ge=0)
    flip: bool = False
    jitter: int = Field(default=0, ge=0)
    noise: float = Field(default=0.0, ge=0)
    views: int = Field(default=4, ge=1)


class Generator(Part):
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


class Rollouts(Part):
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


class Transfer(Part):
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


class Training(Part):
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


class Reader(Part):
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


class Prune(Part):
    """Structured pruning: what goes are whole channels and hidden units, so that the student is smaller and faster, not full of zeros.

    share: of the channels of every layer, how much goes; `prune: 0.5` is short for it. parameters, macs: in place of it, how much of all
    the teacher's parameters, or multiply-accumulates, shall go: the smallest share with which it does. importance: what says which channels
    stay: their weights ("magnitude"), what the loss would change without them ("taylor"), or how loud they are ("activation").
    iterations: in so many equal steps, each measured anew on what is left. keep: layers whose outputs stay whole, by name or glob.
    depth: of a residual net, fewer blocks, alone or before channels go.
    """

    share: float | None = Field(default=None, gt=0, lt=1)
    parameters: float | None = Field(default=None, gt=0, lt=1)
    macs: float | None = Field(default=None, gt=0, lt=1)
    importance: Literal["magnitude", "taylor", "activation"] = "magnitude"
    iterations: int = Field(default=1, ge=1, le=100)
    keep: tuple[str, ...] = ()
    depth: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_target(self) -> Prune:
        said = [name for name in ("share", "parameters", "macs") if getattr(self, name) is not None]
        if len(said) > 1 or not (said or self.depth):
            raise RecipeError(four_parts(
                "student.from_teacher.prune needs one target", got=" and ".join(said) or "none",
                expected="share, parameters or macs; or depth", otherwise="It would not be known how much goes",
                do="Use prune: 0.5, or for example prune: {parameters: 0.75}"))
        return self


def _share(given: Any) -> Any:
    """`prune: 0.5` is a share."""
    return {"share": given} if isinstance(given, int | float) and not isinstance(given, bool) else given


class FromTeacher(Part):
    """A student cut out of its teacher, whose weights it starts with: both arms do, so that the question is what distilling adds.

    layers: of a pretrained model or a decoder, how many, at equal distances, the first and last among them; or their numbers from 0.
    width: of the residual stream, a multiple of the teacher's head size; of `causal` any. heads: of attention; by default as many as fill
    the width, of `causal` all. inner: units of each feed-forward layer. importance: which parts are kept where these are smaller than the
    teacher's: those that are loudest on training texts ("activation"), have most weight ("magnitude"), or whose weights the loss of the
    labels would miss most ("taylor"); by default the loudest. Embeddings are those of the student's tokens.
    static: in place of layers, of a teacher of sentence vectors: a table of so many numbers a token, from what it says of each token alone.
    prune: in place of layers, of a teacher of pictures or numbers that is a net of this package: it, with fewer channels and hidden units.
    """

    layers: int | tuple[int, ...] | None = None
    width: int | None = Field(default=None, ge=1)
    heads: int | None = Field(default=None, ge=1)
    inner: int | None = Field(default=None, ge=1)
    importance: Literal["activation", "magnitude", "taylor"] | None = None
    static: int | None = Field(default=None, ge=2)
    prune: Annotated[Prune | None, BeforeValidator(_share, json_schema_input_type=Prune | float | None)] = None

    @model_validator(mode="after")
    def _one_way(self) -> FromTeacher:
        ways = [way for way in (self.layers, self.static, self.prune) if way is not None]
        if len(ways) != 1 or (self.layers is None and (self.width or self.heads or self.inner)):
            raise RecipeError(four_parts(
                "student.from_teacher says two things, or nothing",
                got=", ".join(name for name, value in self if value and name != "importance") or "neither",
                expected="layers, with width, heads and inner where it shall be narrower; or static alone; or prune alone",
                otherwise="It would not be known what is cut out", do="Use {layers: 3}, {static: 256} or {prune: 0.5}"))
        if self.importance and not (self.width or self.heads or self.inner):
            raise RecipeError(four_parts(
                "student.from_teacher.importance chooses nothing", got=self.importance, expected="width, heads or inner beside it",
                otherwise="It would be ignored: layers go by their places",
                do="Leave it out" + (", or name it in prune" if self.prune else ", or make a width smaller" if self.layers else "")))
        return self


class Student(Part):
    """The model to train: an architecture, start weights, and `match_prior`: classes whose bias is set, after training, so that
    their mean probability over the unlabelled training inputs equals their share there (Hinton et al. 2015, section 3).

    tokenizer: where the data is text. from_teacher: in place of a model."""

    model: dict[str, Any] | Literal["auto"] = {}
    from_teacher: FromTeacher | None = None
    tokenizer: Reader = Reader()
    weights: str | None = None
    match_prior: tuple[str, ...] = ()


class Store(Part):
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


class Quantize(Part):
    """Training on, after the arms, with the rounding of the int8 file that `export: onnx_int8` makes: the shipped student, with its teacher
    and objectives, and a twin on the labels alone.

    epochs, lr: of this training, with AdamW and a cosine; the rest is as in `training`, in float32. calibration: training rows, at most,
    that the ranges of activations begin with.
    """

    epochs: float = Field(default=3, gt=0)
    lr: float = Field(default=1e-4, gt=0)
    calibration: int = Field(default=512, ge=64)


class Compress(Part):
    """What makes the shipped student smaller, after training. quantize: None is no training for int8."""

    quantize: Quantize | None = None


class Draft(Part):
    """The shipped student as a draft for its teacher: greedy speculative decoding of test texts, which must give the teacher's own words.

    prompts: how many test rows are continued, at most those there are. prompt: tokens of their beginnings, at most. tokens: those behind,
    at most. ahead: tokens that the draft proposes for each pass of the teacher.
    """

    prompts: int = Field(default=200, ge=2)
    prompt: int = Field(default=32, ge=1)
    tokens: int = Field(default=64, ge=1)
    ahead: int = Field(default=4, ge=1)


class Profile(Part):
    """A device that the student shall run on; each limit is a gate on what `understudy bench` measures, of one row a call.

    memory_mb: 10^6 bytes resident at most, interpreter and libraries included. cores: threads that it is measured with, and cores that it
    may keep busy. budget_ms: p95 of the latency. wire_bytes: encoded input and answer of a prediction. model_mb: 10^6 bytes of its files.
    artefact: the exporter's name, or `student`; by default the one that misses the fewest limits, the fastest of equals.
    """

    memory_mb: float | None = Field(default=None, gt=0)
    cores: int = Field(default=1, ge=1)
    budget_ms: float | None = Field(default=None, gt=0)
    wire_bytes: float | None = Field(default=None, gt=0)
    model_mb: float | None = Field(default=None, gt=0)
    artefact: str | None = None


class Robustness(Part):
    """The models asked again on test rows that are spoilt as inputs may be where the student is used.

    shifts: which corruptions; auto is all that suit the kind of input. severities: of each, from 1 to 5. rows: how many test rows, at most
    those there are, stratified by class.
    """

    shifts: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = "auto"
    severities: tuple[Annotated[int, Field(ge=1, le=5, strict=True)], ...] = Field(default=(1, 3, 5), min_length=1)
    rows: int = Field(default=1000, ge=2)


class Series(Part):
    """The same recipe at several values of one dotted key: a run each, and one plot of control and distilled over the values.

    folds: each value holds other rows back for the test (a speaker, a year), so that there is a verdict over all, a fold being one item.
    """

    key: str
    values: tuple[Any, ...] = Field(min_length=2)
    folds: bool = False


class Sweep(Part):
    """What `understudy compare` varies: the values of dotted keys, in all combinations (`grid`), in `trials` of them (`random`), or in all
    of them with short runs first, of which each rung keeps the best `eta`-th part by validation (`halving`)."""

    method: Literal["grid", "random", "halving"] = "grid"
    over: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] = {}
    trials: int = Field(default=12, ge=1)
    eta: int = Field(default=3, ge=2)
    seeds: int = Field(default=3, ge=1, le=1000)


class Recipe(Part):
    """One run, whole.

    gates: what the shipped student must reach, else exit 4; `evaluation.claims` lists what can be bounded.
    metric_weights: how much a class counts in the metric, by its name; 1 where it is not named.
    export: formats, each its name or a mapping, {kind: onnx, tolerance: 1e-5}, of the exporter's own fields; written out complete.
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
    compress: Compress = Compress()
    export: tuple[str | dict[str, Any], ...] = ("safetensors",)
    gates: dict[str, Any] = {}
    draft: Draft | None = None
    profiles: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$")], Profile] = {}
    robustness: Robustness | None = None
    series: Series | None = None
    sweep: Sweep | None = None
