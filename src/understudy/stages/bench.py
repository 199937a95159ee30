"""The workplace of a comparison: data, store and cache loaded once, and any student of any variant trained or read back from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from understudy.cache import Cache
from understudy.events import Cancel
from understudy.records import Shapes, Teacher
from understudy.run_folder import RunFolder
from understudy.stages import arms, lessons, record, teach
from understudy.stages.arms import Arm, ArmResult, Job
from understudy.stages.common import class_counts
from understudy.stages.layers import settle_layers
from understudy.stages.prepare import Given, Prepared
from understudy.stages.taught import Taught
from understudy.store.schema import read_header
from understudy.teachers import local, weighted
from understudy.training.step import teacher_taps

Tell = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Lesson:
    """Where a variant's students find what they learn from, in words that another process understands.

    identity: what the teacher's answers depend on. store: the folder of its answers, "" where it learns along with the student.
    features: {teacher tap: folder of that layer's store}. live: the teacher itself is asked in every step.
    """

    identity: str
    store: str = ""
    features: Mapping[str, str] = field(default_factory=dict)
    live: bool = False


@dataclass(frozen=True, eq=False)
class Task:
    """One student: its arm's name and folder, the arm's complete and settled recipe, what it learns from (None: a control), its seed,
    and how many steps it takes."""

    arm: str
    folder: str
    tree: dict[str, Any]
    lesson: Lesson | None
    seed: int
    steps: int


class Bench:
    """Trains tasks. `taught` is the teacher where it is at hand; else it is taken from the cache when a task asks it in every step."""

    def __init__(self, prepared: Prepared, given: Given, cache: Cache, checkpoint_seconds: float, taught: Taught | None = None) -> None:
        self.prepared, self.given, self.cache = prepared, given, cache
        self.checkpoint_seconds, self.taught = checkpoint_seconds, taught
        self._teacher: tuple[Any, Teacher | None] = (None, None)
        self._settled: dict[str, tuple[list[dict[str, Any]], Shapes]] = {}
        self._warm: set[str] = set()

    def train(
        self, task: Task, tell: Tell, cancel: Cancel, spent: Callable[[float], None], begin: Callable[[], None] = lambda: None
    ) -> None:
        """Train it unless its result is there. Raises Interrupted after a checkpoint.

        spent: is told the seconds of its training, also of one that is stopped. Each arm takes a step that is thrown away before its first
        student in this process begins, and `begin` is called: else the first arm would pay for what a process does once.
        """
        if self.done(task):
            return
        job = self._job(task.tree)
        arm = self._arm(job, task, self._asked(task, job))
        if arm.name not in self._warm:
            arms.warm_up(job, arm, task.seed)
            self._warm.add(arm.name)
        begin()
        arms.train_seed(job, arm, task.seed, self.cache, tell, cancel, self.checkpoint_seconds, spent)

    def close(self) -> None:
        """Take the hooks off a teacher that was asked in every step: it may be the caller's own object."""
        self._teacher = (None, None)
        if self.taught is not None and isinstance(self.taught.teacher, local.Teacher):
            self.taught.teacher.tap(())

    def done(self, task: Task) -> bool:
        """Whether its result is in the cache."""
        job = self._job(task.tree)
        return self.cache.done(self._place(job, self._arm(job, task, None), task.seed))

    def results(self, task: Task, folder: RunFolder) -> ArmResult:
        """All seeds of the arm that this task belongs to, whose students are in the cache; `folder` gets a second name for every file."""
        job = self._job(task.tree)
        arm = self._arm(job, task, None)
        return arms.train_arms(job, [arm], self.cache, folder, lambda event: None, lambda: False, self.checkpoint_seconds)[arm.name]

    def control_key(self, tree: Mapping[str, Any]) -> str:
        """Equal for two recipes whose controls are the same student."""
        job = self._job(tree)
        return self._place(job, self._arm(job, Task("", "", dict(tree), None, 0, 0), None), 0).name

    def steps(self, tree: Mapping[str, Any]) -> int:
        """Steps of each student of this recipe."""
        return self._job(tree).steps

    def _place(self, job: Job, arm: Arm, seed: int) -> Path:
        return arms.place_of(job, arm, seed, self.cache)

    def _job(self, tree: Mapping[str, Any]) -> Job:
        key = json.dumps([tree["objective"], tree["student"]["model"]], sort_keys=True)
        if key not in self._settled:
            own = {**tree, "objective": [dict(term) for term in tree["objective"]]}
            shapes = settle_layers(own, self.prepared, self.given)  # a pass of both models
            self._settled[key] = (own["objective"], shapes)
        objective, shapes = self._settled[key]
        return Job({**tree, "objective": objective}, self.prepared, self.given, shapes)

    def _arm(self, job: Job, task: Task, teacher: Teacher | None) -> Arm:
        objectives = arms.objectives_of(job.tree, class_counts(self.prepared))
        identity = task.lesson.identity if task.lesson is not None else ""
        made = {arm.name: arm for arm in arms.arms_of(job, objectives, teacher, identity)}
        return replace(made["control" if task.lesson is None else "distilled"], name=task.folder)

    def _asked(self, task: Task, job: Job) -> Teacher | None:
        """Whom the students of this task ask, None where nobody or where it learns along; the last one is kept."""
        lesson = task.lesson
        if lesson is None or not lesson.store:
            return None
        key = (lesson, job.tree["objective"])
        if self._teacher[0] != key:
            self._teacher = (None, None)  # not two at a time
            self._teacher = (key, self._fixed(lesson, job))
        return self._teacher[1]

    def _fixed(self, lesson: Lesson, job: Job) -> Teacher:
        header, _ = read_header(lesson.store)
        store, tree = Path(lesson.store), job.tree
        if lesson.live:
            if self.taught is None:
                silent: tuple[Any, Any] = (lambda event: None, lambda: False)
                self.taught = teach.obtain(dict(tree), self.prepared, self.given, self.cache, *silent, may_train=False)
            teacher: Teacher = self.taught.fixed
            if isinstance(teacher, local.Teacher):
                teacher.tap(teacher_taps(arms.objectives_of(tree, class_counts(self.prepared))))
        else:
            features = {tap: Path(place) for tap, place in lesson.features.items()}
            teacher = record.learn_from(store, header, self.prepared, tree, features)
        if tree["teacher_weights"] in ("learnt", "per_example"):
            said = lambda: record.said(store, header, self.prepared, self.prepared.validation)  # noqa: E731
            teacher = weighted.Teacher(teacher, lessons.weights_of(tree, said, self.prepared)[0])
        return teacher
