from __future__ import annotations

import json
import os
import time

import pytest

from understudy.cache import Cache
from understudy.cli.cache import parse_age, parse_size
from understudy.errors import RecipeError


@pytest.fixture
def folder(tmp_path):
    """Three results of 1000 bytes: one of a run that is there, one of a run that is gone, one that is unfinished."""
    root = tmp_path / "runs" / "_cache"
    (tmp_path / "runs" / "here").mkdir(parents=True)
    for days, (stage, run, finished) in enumerate([("teacher", "here", True), ("arm", "gone", True), ("store", "here", False)]):
        cache = Cache(root, tmp_path / "runs" / run)
        path = cache.folder(stage, {"seed": 0}, 1)
        with cache.claim(path):
            (path / "data").write_bytes(bytes(1000))
            if finished:
                cache.finish(path)
        if finished:
            moment = time.time() - days * 86400
            os.utime(path / "entry.json", (moment, moment))
    return root


def test_show_lists_what_is_kept_and_for_whom(understudy, folder):
    done = understudy("cache", "show", "--cache", folder)
    lines = done.out.splitlines()
    assert done.code == 0 and lines[-1].startswith("3 results, 3.0 kB")
    assert sum("unfinished" in line for line in lines) == 1 and sum("here" in line for line in lines) == 1
    rows = {row["stage"]: row for row in json.loads(understudy("cache", "show", "--cache", folder, "--json").out)}
    assert rows["teacher"]["used_by"] == ["../here"] and rows["teacher"]["bytes"] == 1000 and not rows["store"]["done"]


def test_gc_removes_what_only_removed_runs_used(understudy, folder):
    def kept():
        return sorted(path.name.partition("-")[0] for path in folder.iterdir() if path.name != "_locks")

    before = kept()
    dry = understudy("cache", "gc", "--cache", folder, "--dry-run")
    assert dry.code == 0 and "would free 1.0 kB in 1 results" in dry.out and kept() == before
    done = understudy("cache", "gc", "--cache", folder)
    assert "freed 1.0 kB in 1 results" in done.out and kept() == ["store", "teacher"]
    assert "freed 0 B" in understudy("cache", "gc", "--cache", folder).out
    done = understudy("cache", "gc", "--cache", folder, "--max-size", "1.5kB", "--json")  # the unfinished one knows what it cost, too
    assert len(json.loads(done.out)) == 1 and len(kept()) == 1


def test_no_cache_is_not_an_error(understudy, tmp_path):
    for verb in ("show", "gc"):
        assert understudy("cache", verb, "--cache", tmp_path / "nowhere").code == 0
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(("text", "number"), [("1000", 1000), ("500MB", 5e8), ("2 GB", 2e9), ("1.5k", 1500), ("1tb", 1e12), ("0", 0)])
def test_sizes(text, number):
    assert parse_size(text) == number


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("12h", 43200), ("7d", 604800), ("1.5w", 907200)])
def test_ages(text, seconds):
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "MB", "-1GB", "1 potato", "1e3", "inf", "1,5GB"])
def test_an_amount_that_is_not_one_removes_nothing(understudy, folder, text):
    """Prevents: a typing error in a limit empties the cache."""
    with pytest.raises(RecipeError):
        parse_size(text)
    with pytest.raises(RecipeError):
        parse_age(text)
    if text:
        assert understudy("cache", "gc", "--cache", folder, f"--max-size={text}").code == 2
        assert len(list(folder.iterdir())) == 4
