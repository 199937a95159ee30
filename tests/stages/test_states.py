"""stages/states.py: whose hidden states can be kept, refused before anything is trained."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from understudy import recipe
from understudy.errors import DataError, RecipeError
from understudy.report.facts import Size
from understudy.stages import record, states
from understudy.stages.plan import plan
from understudy.stages.prepare import Given, prepare
from understudy.stages.start import refuse
from understudy.stages.taught import Taught
from understudy.store.schema import row_bytes
from understudy.teachers import local

WORDS = "a cat ran home and a dog sat beside the warm stove while birds sang about summer, rivers, bridges and old clocks "


@pytest.fixture
def asked(tmp_path):
    """(settled recipe, data) of a small corpus, with overrides."""
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(f"{WORDS * (1 + number % 4)}{number}.", encoding="utf-8")

    def call(*more):
        wanted = recipe.load("next_word", (
            f"data={{kind: corpus, path: '{tmp_path}', passage: 120, split: {{validation: 0.1, test: 0.2}}}}",
            "teacher={kind: local, model: {arch: decoder, width: 16, layers: 1, heads: 2}, rights: {terms: own}, train: {epochs: 1}}",
            "student={model: {arch: decoder, width: 8, layers: 1, heads: 2}, tokenizer: {kind: bpe, size: 300}}",
            "objective={kind: sequence.ForwardKL}", "store={keep: states, dtype: float16}", "metric=bits_per_byte", *more,
        ))  # fmt: skip
        return recipe.resolved(wanted), prepare(wanted, Given())

    return call


class Net(nn.Module):
    """A model of running text without an output layer of its own, or with one that is not linear."""

    def __init__(self, size, head):
        super().__init__()
        self.embed, self.head = nn.Embedding(size, 8), head

    def features(self, x):
        return self.embed(x)

    def forward(self, x):
        return self.head(self.features(x))


def test_a_teacher_that_is_a_model_here_is_taken(asked):
    tree, data = asked()
    refuse(tree, data, Given())
    linear = nn.Linear(8, data.outputs)
    refuse(tree, data, Given(teacher=Net(data.outputs, linear)))


def test_a_teacher_without_a_linear_output_layer_is_refused(asked):
    """Prevents: states kept of which nothing can make the teacher's answers."""
    tree, data = asked()
    capped = nn.Sequential(nn.Linear(8, data.outputs), nn.Tanh())
    with pytest.raises(RecipeError, match=r"store.keep: states needs a model here.*got Net, which shows no states"):
        refuse(tree, data, Given(teacher=Net(data.outputs, capped)))
    taught = Taught(local.Teacher(Net(data.outputs, capped), "t"), Size(1, 4), [])
    with pytest.raises(RecipeError, match="come from no linear output layer"):
        record.header_of(tree, data, taught, {})


def test_a_translated_teacher_is_refused(asked):
    """Its rows are over the student's tokens, its states before a layer of its own."""
    tree, data = asked("teacher.tokenizer={kind: bpe, size: 310}")
    with pytest.raises(RecipeError, match="a teacher with another tokenizer"):
        refuse(tree, data, Given())
    tree, data = asked("teacher.tokenizer={kind: bpe, size: 310}", "store.keep=tokens")
    refuse(tree, data, Given())


def test_masked_text_has_no_stored_states(asked):
    tree, data = asked()
    holes = SimpleNamespace(task="masked")
    with pytest.raises(RecipeError, match="can't serve tokens that are hidden anew"):
        record.kept(tree, holes)
    assert record.kept(tree, data) == "states"


def test_states_are_of_running_text_alone(toy):
    wanted = toy.recipe("store.keep=states")
    with pytest.raises(RecipeError, match="store.keep: states is for other data"):
        refuse(recipe.resolved(wanted), prepare(wanted, Given()), Given())


def test_more_than_the_limit_is_refused_with_the_figures(asked):
    """Prevents: a disk that fills up while the teacher is asked."""
    tree, data = asked()
    tokens = states.positions(data)
    counted = sum(int((data.rows.batch(rows).labels >= 0).sum()) for rows in data.distilled.split(3))
    assert counted <= tokens <= counted + len(data.distilled) * 120  # the first tokens of documents are counted in
    needed = (tokens * 2 * 16 + 4 * data.outputs * 17) / 1e9
    tree["store"]["limit_gb"] = needed * 1.001
    refuse(tree, data, Given())
    tree["store"]["limit_gb"] = needed * 0.999
    with pytest.raises(DataError, match=f"for {tokens:,} tokens of 32 bytes"):
        refuse(tree, data, Given())


def test_the_header_and_the_plan_speak_of_this_teacher(asked):
    tree, data = asked()
    headers = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        taught = Taught(local.Teacher(Net(data.outputs, nn.Linear(8, data.outputs)), str(seed)), Size(1, 4), [])
        headers.append(record.header_of(tree, data, taught, {}))
    assert headers[0].shape == (8,) and headers[0].head != headers[1].head and headers[0].tokenizer == headers[1].tokenizer != ""
    rows = {row["what"]: row for row in plan(tree, data, taught, {}, {"student": {"predicted_seconds": 1.0}})}
    assert rows["store"]["value"] == f"{states.positions(data) * row_bytes(headers[0]) / 1e6:.2f} MB" and row_bytes(headers[0]) == 16
