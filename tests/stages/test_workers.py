"""Students trained by worker processes: the same bytes as here, a killed worker loses only its own, errors and Ctrl-C come through."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from understudy import recipe
from understudy.cache import Cache
from understudy.errors import DataError, Interrupted, RecipeError
from understudy.stages import arms, prepare, ready, rounds, settle, teach, variants, worker, workers
from understudy.stages.bench import Bench, Lesson, Task
from understudy.stages.prepare import Given

SPENT = lambda task, seconds: None  # noqa: E731


class Laid:
    """A bench for the toy recipe in a cache of its own, its tasks, and the ground from which a worker lays the same bench."""

    def __init__(self, toy, where, *overrides, objectives=("logits.SoftTargets", "logits.DIST"), seeds=2):
        wanted = variants.folded(toy.recipe(*overrides), objectives, seeds)
        tree, given, self.cache = recipe.resolved(wanted), Given(), Cache(where / "_cache", where)
        data = prepare.prepare(wanted, given)
        settle.settle_recipe(tree, data, given, self.cache)
        quiet, never = (lambda event: None), (lambda: False)
        taught = teach.obtain(tree, data, given, self.cache, quiet, never)
        on = ready.Rehearsal(data, taught, {"teachers": {}}, given, self.cache, quiet, never)
        found = ready.rehearsed(variants.expand(recipe.load(tree)), on)
        store, features = ready.stores(found)
        self.bench = Bench(ready.kept(found, data), given, self.cache, 0.0, taught)
        self.ground = worker.Ground(tree, str(self.cache.root), str(where), store, features, 0.0, torch.get_num_threads())
        self.tasks = [task for one in found for task in rounds.tasks(one, self.bench)]

    def outcome(self):
        """The bytes of every student."""
        places = sorted(self.cache.root.glob("arm-*"))
        return {f"{place.name}/{name}": (place / name).read_bytes() for place in places
                for name in ("student.safetensors", "outputs.safetensors", "metrics.jsonl", "result.json")}  # fmt: skip


def test_tasks_are_trained_here_once(toy, tmp_path):
    laid, spent, events = Laid(toy, tmp_path), [], []
    workers.train_here(laid.tasks, laid.bench, events.append, lambda: False, lambda task, seconds: spent.append((task, seconds)))
    assert [task for task, _ in spent] == laid.tasks and all(seconds > 0 for _, seconds in spent)
    shares = [event.fraction for event in events]
    assert shares == sorted(shares) and shares[-1] == 1.0
    before = laid.outcome()
    again = []
    workers.train_here(laid.tasks, laid.bench, lambda event: None, lambda: False, lambda task, seconds: again.append(seconds))
    assert again == [] and laid.outcome() == before and len(before) == 4 * len(laid.tasks)


def test_what_a_process_does_once_is_in_no_student_s_seconds(toy, tmp_path, monkeypatch):
    """Prevents: the first arm pays for imports, data and first calls, and a comparison's costs are those of the order of its arms."""
    laid, spent, slow = Laid(toy, tmp_path), [], {"fit": 0, "task": 0}
    real_fit, real_done = arms.fit, laid.bench.done

    def first_is_slow(*args, **options):
        slow["fit"] += 1
        time.sleep(0.0 if options.get("folder") else 1.0)  # the step that is thrown away has no folder
        return real_fit(*args, **options)

    def looking_is_slow(task):
        time.sleep(0.5)
        return real_done(task)

    monkeypatch.setattr(arms, "fit", first_is_slow)
    monkeypatch.setattr(laid.bench, "done", looking_is_slow)
    workers.train_here(laid.tasks[:2], laid.bench, lambda event: None, lambda: False, lambda task, seconds: spent.append(seconds))
    assert slow["fit"] == 3 and len(spent) == 2, "one step is thrown away for both seeds of an arm"
    assert max(spent) < 0.5


def test_a_step_that_is_thrown_away_changes_nothing(toy, tmp_path, monkeypatch):
    """Prevents: a student whose bytes depend on whether it was the first of its process."""
    warm, cold = Laid(toy, tmp_path / "a"), Laid(toy, tmp_path / "b")
    workers.train_here(warm.tasks, warm.bench, lambda event: None, lambda: False, SPENT)
    monkeypatch.setattr(arms, "warm_up", lambda job, arm, seed: None)
    workers.train_here(cold.tasks, cold.bench, lambda event: None, lambda: False, SPENT)
    assert warm.outcome() == cold.outcome()


def test_an_interrupted_task_counts_its_seconds(toy, tmp_path):
    laid, spent = Laid(toy, tmp_path), []
    with pytest.raises(Interrupted):
        workers.train_here(laid.tasks, laid.bench, lambda event: None, lambda: True, lambda task, seconds: spent.append(task))
    assert spent == laid.tasks[:1]


def test_a_worker_hears_stop_and_the_end_of_its_parent():
    """Prevents: a worker that trains on for hours after its parent was killed."""
    for tell in (lambda end: worker.send(end, {"stop": True}), lambda end: end.close()):
        mine, theirs = multiprocessing.Pipe()
        ear = worker._Ear(theirs)
        assert not ear.stopped()
        tell(mine)
        assert not ear.stopped(), "it looks ten times a second, not at every step"
        ear.last = 0.0
        assert ear.stopped() and ear.stopped() and ear.order() is None


def test_an_error_comes_back_as_itself():
    assert isinstance(workers._error({"error": "RecipeError", "text": "x"}), RecipeError)
    system = workers._error({"error": "OSError", "errno": 28, "text": "No space left on device", "file": "a"})
    assert isinstance(system, OSError) and system.errno == 28
    assert isinstance(workers._error({"error": "KeyError", "text": "x", "trace": "..."}), RuntimeError)
    assert isinstance(workers._error({"error": "four_parts", "text": "x"}), RuntimeError)


def test_an_order_survives_the_pipe(toy, tmp_path):
    """Prevents: a task that reaches the worker as another recipe, and so another key in the cache."""
    laid = Laid(toy, tmp_path)
    for task in laid.tasks:
        order = json.loads(json.dumps(asdict(task)))
        again = Task(**{**order, "lesson": Lesson(**order["lesson"])})
        assert asdict(again) == asdict(task)
        assert laid.bench._place(laid.bench._job(again.tree), laid.bench._arm(laid.bench._job(again.tree), again, None), again.seed) == (
            laid.bench._place(laid.bench._job(task.tree), laid.bench._arm(laid.bench._job(task.tree), task, None), task.seed))  # fmt: skip


@pytest.mark.slow
def test_a_killed_worker_loses_only_its_own(toy, tmp_path):
    """Prevents: one worker that the system kills ends the comparison, or changes its result."""
    here, apart = Laid(toy, tmp_path / "a", "training.epochs=40"), Laid(toy, tmp_path / "b", "training.epochs=40")
    workers.train_here(here.tasks, here.bench, lambda event: None, lambda: False, SPENT)
    who, killed, said = {}, [], []

    def watch(event):
        who.update({event.text: event.data["worker"]} if "worker" in event.data else {})
        said.extend([event.text] if event.kind == "warning" else [])
        if event.data.get("step", 0) > 10 and not killed:
            killed.append(who[event.text])
            os.kill(who[event.text], signal.SIGKILL)

    spent = {}
    crew = workers.Crew(apart.ground, 2)
    crew.train(apart.tasks, watch, lambda: False, lambda task, seconds: spent.setdefault(task, []).append(seconds))
    crew.close()
    assert len(killed) == 1 and len(said) == 1 and "signal 9" in said[0]
    assert sorted(len(times) for times in spent.values()) == [1, 1, 1, 2], "one was worked at twice"
    assert apart.outcome() == here.outcome() and not list(apart.cache.root.glob("arm-*/checkpoint*"))


@pytest.mark.slow
def test_stopping_leaves_a_checkpoint_of_each_and_goes_on_to_the_same_bytes(toy, tmp_path):
    here, apart = Laid(toy, tmp_path / "a", "training.epochs=40"), Laid(toy, tmp_path / "b", "training.epochs=40")
    workers.train_here(here.tasks, here.bench, lambda event: None, lambda: False, SPENT)
    seen = set()
    crew = workers.Crew(apart.ground, 2)
    with pytest.raises(Interrupted):
        crew.train(apart.tasks, lambda event: seen.update([event.text] if "step" in event.data else []), lambda: len(seen) > 0, SPENT)
    assert crew.workers == [] and multiprocessing.active_children() == []
    stopped = list(apart.cache.root.glob("arm-*/checkpoint.safetensors"))
    assert 1 <= len(stopped) + len(list(apart.cache.root.glob("arm-*/entry.json"))) <= 4
    workers.train_here(apart.tasks, apart.bench, lambda event: None, lambda: False, SPENT)
    assert apart.outcome() == here.outcome()


@pytest.mark.slow
def test_what_kills_every_worker_is_given_up(toy, tmp_path):
    """Prevents: a task that needs more memory than there is starts workers for ever."""
    laid = Laid(toy, tmp_path)
    pids = []

    def watch(event):
        if "worker" in event.data:
            pids.append(event.data["worker"])
            os.kill(event.data["worker"], signal.SIGKILL)

    with pytest.raises(DataError, match="--jobs 1"):
        workers.Crew(laid.ground, 1).train(laid.tasks[:1], watch, lambda: False, SPENT)
    assert len(pids) == workers.MOST_DEATHS == len(set(pids)) and multiprocessing.active_children() == []


UNGUARDED = """
import json, sys
from understudy.stages.worker import Ground
from understudy.stages.bench import Task, Lesson
from understudy.stages import workers

asked = json.load(open(sys.argv[1]))
task = Task(**{**asked["task"], "lesson": Lesson(**asked["task"]["lesson"])})
workers.Crew(Ground(**asked["ground"]), 1).train([task], lambda event: None, lambda: False, lambda task, seconds: None)
"""


@pytest.mark.slow
def test_a_script_that_every_worker_runs_again_is_told_so(toy, tmp_path):
    """Prevents: a caller of the API who is sent to look for a lack of memory."""
    laid = Laid(toy, tmp_path)
    (tmp_path / "unguarded.py").write_text(UNGUARDED)
    (tmp_path / "asked.json").write_text(json.dumps({"task": asdict(laid.tasks[0]), "ground": asdict(laid.ground)}))
    words = [sys.executable, tmp_path / "unguarded.py", tmp_path / "asked.json"]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=600)
    assert done.returncode != 0 and 'if __name__ == "__main__":' in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.slow
def test_an_error_in_a_worker_stops_the_others_after_a_checkpoint(toy, tmp_path):
    laid = Laid(toy, tmp_path, "training.epochs=200")
    broken = replace(laid.tasks[-1], tree={**laid.tasks[-1].tree, "objective": [{"kind": "logits.Nothing"}]})
    with pytest.raises(RecipeError, match="Nothing"):
        workers.Crew(laid.ground, 2).train([laid.tasks[0], broken], lambda event: None, lambda: False, SPENT)
    assert multiprocessing.active_children() == []
    [place] = laid.cache.root.glob("arm-*/*.safetensors")
    assert place.name in ("checkpoint.safetensors", "student.safetensors") or place.parent.joinpath("entry.json").is_file()


ORPHAN = """
import sys, os, json
from understudy.stages.worker import Ground
from understudy.stages.bench import Task, Lesson
from understudy.stages import workers

if __name__ == "__main__":
    asked = json.load(open(sys.argv[1]))
    task = Task(**{**asked["task"], "lesson": Lesson(**asked["task"]["lesson"])})

    def watch(event):
        if "worker" in event.data:
            print(event.data["worker"], flush=True)
        if "step" in event.data:
            os.kill(os.getpid(), 9)

    workers.Crew(Ground(**asked["ground"]), 1).train([task], watch, lambda: False, lambda task, seconds: None)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_a_worker_whose_parent_is_killed_stops_after_a_checkpoint(toy, tmp_path):
    laid = Laid(toy, tmp_path, "training.epochs=20000")
    (tmp_path / "orphan.py").write_text(ORPHAN)
    (tmp_path / "asked.json").write_text(json.dumps({"task": asdict(laid.tasks[0]), "ground": asdict(laid.ground)}))
    done = subprocess.run([sys.executable, tmp_path / "orphan.py", tmp_path / "asked.json"], stdout=subprocess.PIPE, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL
    pid, until = int(done.stdout.split()[0]), time.monotonic() + 300
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert time.monotonic() < until, "it is still at work"
    assert len(list(laid.cache.root.glob("arm-*/checkpoint.safetensors"))) == 1
