"""`understudy record`: the teacher is asked once, and `run` finds every answer."""

from __future__ import annotations

import json

from understudy import recipe


def test_recording_then_running(understudy, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.yaml").write_text(recipe.to_yaml(recipe.resolved(toy.recipe())))
    done = understudy("record", "toy.yaml")
    assert done.code == 0 and "asked the teacher for 150 rows" in done.err
    store = done.out.strip()
    assert (tmp_path / store / "header.json").is_file() and done.err.splitlines()[-1] == f"next: understudy store show {store}"
    assert not (tmp_path / "runs/toy/summary.json").exists()
    shown = understudy("store", "show", store, "--json")
    assert shown.code == 0 and json.loads(shown.out)
    again = understudy("record", "toy.yaml")
    assert again.out == done.out and "nothing to ask" in again.err
    run = understudy("run", "toy.yaml")
    assert run.code == 0 and "nothing to ask" in run.err and "settle" not in run.err, "what was settled is in the run folder"
    assert understudy("record", "toy.yaml", "teacher.0.rights.terms=disallowed", "name=b").code == 6
