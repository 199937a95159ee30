from __future__ import annotations

import json

import pytest

from understudy.recipe import load, packaged


def test_list_shows_all_with_the_comment_they_begin_with(understudy):
    done = understudy("recipes", "list")
    assert done.code == 0 and "digits" in packaged()
    lines = done.out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(packaged())
    assert all(len(line.split()) > 3 for line in lines), "a packaged recipe does not begin with a comment that says what it does"
    rows = json.loads(understudy("recipes", "list", "--json").out)
    assert [row["name"] for row in rows] == list(packaged())
    assert all(row["about"].endswith(".") and row["about"].count("(") == row["about"].count(")") for row in rows), "cut within a sentence"


@pytest.mark.parametrize("name", packaged())
def test_a_copy_is_the_same_recipe(understudy, tmp_path, name):
    done = understudy("recipes", "copy", name, tmp_path / "mine.yaml")
    assert done.code == 0 and done.out == f"{tmp_path / 'mine.yaml'}\n"
    assert load(tmp_path / "mine.yaml") == load(name)
    assert understudy("recipes", "show", name).out == (tmp_path / "mine.yaml").read_text()


def test_copy_goes_here_or_into_a_folder_and_writes_over_nothing(understudy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert understudy("recipes", "copy", "digits").out == "digits.yaml\n"
    (tmp_path / "digits.yaml").write_text("mine\n")
    again = understudy("recipes", "copy", "digits")
    assert again.code == 2 and "--force" in again.err and (tmp_path / "digits.yaml").read_text() == "mine\n"
    assert understudy("recipes", "copy", "digits", "--force").code == 0 and (tmp_path / "digits.yaml").read_text() != "mine\n"
    (tmp_path / "folder").mkdir()
    assert understudy("recipes", "copy", "digits", "folder").code == 0 and (tmp_path / "folder" / "digits.yaml").is_file()


@pytest.mark.parametrize("verb", ["show", "copy"])
def test_an_unknown_name_gets_the_nearest(understudy, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    done = understudy("recipes", verb, "digit")
    assert done.code == 2 and 'Did you mean "digits"?' in done.err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../recipe", "/etc/hostname", "digits.yaml"])
def test_only_packaged_recipes_can_be_named(understudy, tmp_path, monkeypatch, name):
    """Prevents: `recipes show` prints any file of the machine for whoever chooses the name."""
    monkeypatch.chdir(tmp_path)
    done = understudy("recipes", "show", name)
    assert done.code == 2 and done.out == ""


def test_schema_is_a_json_schema_that_knows_the_kinds(understudy):
    schema = json.loads(understudy("recipes", "schema").out)
    assert {"name", "data", "teacher", "student", "objective"} <= set(schema["properties"])
    assert {"models.mlp", "objectives.logits.SoftTargets"} <= set(schema["$defs"])
