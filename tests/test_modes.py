"""Every mode of distillation, end to end at toy size; stopped and started again, each ends at the same bytes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from understudy import recipe
from understudy.errors import Interrupted
from understudy.stages.common import fresh_student
from understudy.stages.prepare import Given, prepare

NUMERICS = "precision: float32, memory_format: contiguous, compile: false"
BETTER = "epochs: 8, lr: 1e-2, batch_size: 64"  # far better than guessing, on any machine: the self-test refuses less
LOCAL = f"{{kind: local, model: {{arch: %s}}, train: {{{BETTER}, %s}}, rights: {{terms: own}}%s}}"
CNN, MLP = LOCAL % ("cnn, width: 4", NUMERICS, ""), LOCAL % ("mlp, hidden: [16]", NUMERICS, "")
SMALL = (
    "data={kind: builtin, name: digits, split: {validation: 0.1, test: 0.5}}",
    f"teacher={CNN}",
    "student={model: {arch: cnn, width: 2}}",
    f"training={{steps: 14, batch_size: 64, lr: 1e-2, seeds: 2, threads: 1, control: none, control_reason: toy, {NUMERICS}}}",
)
KD = "objective=[{kind: logits.SoftTargets, temperature: 4}, {kind: labels.CrossEntropy}]"
SOFT = "objective=[{kind: logits.SoftTargets, temperature: 4}]"
HINT = "objective=[{kind: features.Hint}, {kind: labels.CrossEntropy}]"
PAIR = f"teacher=[{CNN}, {MLP}]"
SOME, OTHERS = (LOCAL % ("cnn, width: 4", NUMERICS, f", classes: {list(names)}") for names in ("012345", "456789"))
HALVES = f"teacher=[{SOME}, {OTHERS}]"
MODES = {
    "offline": (KD,),
    "stored layers": (HINT,),
    "live layers": (HINT, "store.features=live"),
    "augmented layers": (HINT, "data.augment={jitter: 1, views: 2}"),
    "relations": ("objective=[{kind: relations.DistanceAngle}, {kind: labels.CrossEntropy}]",),
    "a bank": ("objective=[{kind: relations.CRD}, {kind: labels.CrossEntropy}]",),
    "balance": ("objective=[{kind: features.Hint}, {kind: logits.SoftTargets}, {kind: labels.CrossEntropy}]", "training.balance=gradnorm"),
    "peers": ("teacher={kind: peers, count: 3}", KD),
    "peers of another kind": ("teacher={kind: peers, models: [{arch: mlp, hidden: [16], dropout: 0.3}], target: min_logit}", KD),
    "peers with layers": ("teacher={kind: peers, models: [{arch: cnn, width: 3}]}", HINT),
    "peers and exits": (
        "teacher={kind: peers, models: [{arch: cnn, width: 3}]}",
        "objective=[{kind: logits.SoftTargets}, {kind: exits.DeepExits}, {kind: labels.CrossEntropy}]",
    ),
    "online": ("teacher={kind: online, model: {arch: cnn, width: 4}, train: {lr: 3e-3, optimizer: sgd}}", KD),
    "online with layers": ("teacher={kind: online, model: {arch: cnn, width: 4}}", HINT),
    "averaged": ("teacher={kind: averaged, decay: 0.9}", KD, "student={model: {arch: mlp, hidden: [16], dropout: 0.3}}"),
    "averaged with layers": (
        "teacher={kind: averaged, decay: 0.9}",
        "objective=[{kind: relations.DistanceAngle}, {kind: labels.CrossEntropy}]",
    ),
    "exits": ("teacher={kind: itself}", "objective=[{kind: exits.DeepExits}, {kind: labels.CrossEntropy}]"),
    "its own past": ("teacher={kind: itself}", "objective=[{kind: logits.Progressive}]"),
    "a virtual teacher": ("teacher={kind: itself}", "objective=[{kind: logits.VirtualTeacher}, {kind: labels.CrossEntropy}]"),
    "generations": (f"teacher={{kind: generations, count: 2, train: {{{BETTER}, {NUMERICS}}}}}", KD),
    "assistants": (
        f"teacher={{kind: assistants, of: {CNN}, through: [{{model: {{arch: cnn, width: 3}}, train: {{{BETTER}, {NUMERICS}}}}}]}}",
        KD,
    ),
    "learnt weights": (PAIR, "teacher_weights=learnt", KD),
    "weights per example": (PAIR, "teacher_weights=per_example", KD),
    "teachers of some classes": (HALVES, "objective=[{kind: logits.Subsets}, {kind: labels.CrossEntropy}]"),
    "noise": ("data.transfer.source=noise", SOFT),
    "noise with layers": ("data.transfer.source=noise", "objective=[{kind: features.Hint}, {kind: logits.SoftTargets}]"),
    "generated": ("data.transfer={source: generated, generator: {latent: 8, width: 4, adversarial: 1.0}}", SOFT),
}


def outcome(run):
    """The bytes of all that must be the same."""
    names = ["metrics.jsonl", "summary.json", "student/model.safetensors"]
    names += sorted(str(path.relative_to(run.path)) for path in run.path.glob("arms/*/*/*.safetensors"))
    return {name: (run.path / name).read_bytes() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_it_runs_and_goes_on_to_the_same_bytes(toy, tmp_path, mode):
    """Prevents: a mode that keeps something (peers, an average, a bank, a generator) and forgets it in the checkpoint, or begins with
    weights that depend on what was drawn before. Each start begins from other global random numbers."""
    asked = {"teacher": 0, "train": 0}
    torch.manual_seed(1)

    def count():
        stage = toy.events[-1].stage
        asked[stage] = asked.get(stage, 0) + 1
        return False

    whole = toy.run(*SMALL, *MODES[mode], "name=whole", runs=tmp_path / "whole", cancel=count)
    rows = [json.loads(line) for line in (whole.path / "metrics.jsonl").read_text().splitlines()]
    learnt = [row for row in rows if row["arm"] == "distilled"]
    assert {row["seed"] for row in learnt} == {0, 1} and learnt[-1]["step"] == 14
    assert asked["train"] == 28
    stops = [("train", 5), ("train", 14)]  # in the middle of the first seed, and of the second one
    if mode in ("generations", "assistants"):
        stops.insert(0, ("teacher", round(0.8 * asked["teacher"])))
    for number, (stage, left) in enumerate(stops):
        questions = iter(range(1, 1000))
        torch.manual_seed(2 + number)

        def cancel(stage=stage, left=left, questions=questions):
            return toy.events[-1].stage == stage and next(questions) >= left

        with pytest.raises(Interrupted):
            toy.run(*SMALL, *MODES[mode], "name=whole", runs=tmp_path / "parts", cancel=cancel)
    torch.manual_seed(9)
    resumed = toy.run(*SMALL, *MODES[mode], "name=whole", runs=tmp_path / "parts")
    expected, found = outcome(whole), outcome(resumed)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    assert not list((tmp_path / "parts").rglob("checkpoint*")) and not list((tmp_path / "parts").rglob("*.tmp"))


def weights(run, arm):
    return load_file(run.path / f"arms/{arm}/seed-0/student.safetensors")


def fresh(wanted):
    tree, data = recipe.resolved(wanted), prepare(wanted, Given())
    return fresh_student(tree, data, Given(), 0).state_dict()


@pytest.mark.slow
def test_the_control_that_only_begins_is_the_student_before_its_first_step(toy):
    """Prevents: a job without labels is compared with a student that had some."""
    control = ("training.control=init_only", "training.seeds=1", "training.steps=3")
    run = toy.run(*SMALL, SOFT, "data.transfer.source=noise", *control)
    start = fresh(toy.recipe(*SMALL, SOFT))
    found = weights(run, "control")
    assert found.keys() == start.keys() and all(torch.equal(value, found[name]) for name, value in start.items())
    moved = weights(run, "distilled")
    assert any(not torch.equal(value, moved[name]) for name, value in start.items())
    rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert not [row for row in rows if row["arm"] == "control"]


@pytest.mark.slow
def test_the_control_is_the_same_in_every_mode(toy):
    """Prevents: a control that the mode reaches too: it would differ between modes, and distilling would be compared with distilling."""
    small = [*SMALL, "training.control=no_teacher", "training.seeds=1", "training.steps=3"]
    found = []
    for mode in ("offline", "peers with layers", "averaged with layers", "noise"):
        found.append(weights(toy.run(*small, *MODES[mode], f"name={mode.replace(' ', '-')}"), "control"))
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


@pytest.mark.slow
def test_no_hook_is_left_in_a_callers_teacher(toy):
    """Prevents: every later answer of a caller's own model is kept in memory by a run that is long over."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 6, 3, 1, 1), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(96, 10)]
    module = nn.Sequential(*layers)
    wanted = toy.recipe(*SMALL)
    rows = prepare(wanted, Given())
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(60):  # the self-test lets no teacher pass who knows nothing
        loss = nn.functional.cross_entropy(module(rows.rows.inputs(rows.teacher)), rows.rows.labels[rows.teacher])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.zero_grad()
    hint = "objective=[{kind: features.Hint, layers: {'head:input': '5:input'}}, {kind: logits.SoftTargets}]"
    short = ("training.seeds=1", "training.steps=3")
    toy.run(*SMALL, hint, *short, given=Given(teacher=module))
    toy.run(*SMALL, "data.transfer.source=generated", SOFT, *short, "name=generated", given=Given(teacher=module))
    assert not [name for name, part in module.named_modules() if part._forward_hooks or part._forward_pre_hooks]
