from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from understudy.cli.store import app
from understudy.errors import DataError
from understudy.records import Knowledge
from understudy.store.codec import encode
from understudy.store.describe import describe, verify
from understudy.store.schema import Header
from understudy.store.writer import Writer


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result, result.output.strip().splitlines()


def test_show_says_what_is_there(three_shards):
    result, lines = run("show", three_shards)
    assert result.exit_code == 0
    assert result.stderr == f"next: understudy store verify {three_shards}\n" and "next" not in result.stdout
    text = result.output
    for part in ("dense float32, 7 classes", "rows         30", "30 rows in 3 shards", "teacher-1", "data-1", "transform-1", "terms: own"):
        assert part in text
    assert json.loads(run("show", three_shards, "--json")[0].output) == describe(three_shards)


def test_rights_are_words(tmp_path):
    """Prevents: a reader who is asked to answer for a teacher's terms has to read the inside of a program's dictionary."""
    rights = {"terms": "unknown", "teachers": {"teacher (local)": {"terms": "unknown", "licence": "MIT", "source": ""}},
              "acknowledged": [{"name": "Ann", "reason": "we trained it"}]}  # fmt: skip
    with Writer(tmp_path, Header(classes=2, teacher="t", data="d", transform="x", rights=rights), planned=1) as writer:
        writer.append(["a"], 0, {"logits": np.zeros((1, 2), np.float32)})
    [line] = [line for line in run("show", tmp_path)[1] if line.startswith("rights")]
    assert line == ("rights       acknowledged (name: Ann, reason: we trained it), "
                    "teachers (teacher (local) (licence: MIT, terms: unknown)), terms: unknown")  # fmt: skip
    assert not set("{}[]'") & set(line)


def test_describe_counts_each_row_once_and_the_mean_tail(tmp_path):
    header = Header(classes=6, keep="topk", k=2, temperatures=(1.0, 5.0), teacher="t", data="d", transform="x")
    logits = torch.randn(50, 6)
    with Writer(tmp_path, header, planned=10**6) as writer:
        writer.append([f"{number}" for number in range(50)], 1, encode(Knowledge(logits=logits), header))
        writer.append(["lost"], 1, encode(Knowledge(logits=torch.full((1, 6), torch.nan)), header))
    facts = describe(tmp_path)
    assert facts["rows"] == 50 and facts["rows_by_view"] == {"1": 50} and facts["quarantined"] == [["lost", 1]]
    for temperature in (1.0, 5.0):
        probs = torch.softmax(logits / temperature, dim=1).sort(descending=True).values
        assert facts["tail_mass"][str(temperature)] == pytest.approx(float(probs[:, 2:].sum(dim=1).mean()), abs=1e-3)
    assert "tail mass" in run("show", tmp_path)[0].output


def test_verify_names_what_is_broken(three_shards):
    assert verify(three_shards) == []
    result, lines = run("verify", three_shards)
    assert result.exit_code == 0 and result.stdout == f"{three_shards} is whole\n" and "next: understudy store show" in result.stderr
    path = next(three_shards.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes() + b"x")
    result, _ = run("verify", three_shards)
    assert isinstance(result.exception, DataError) and path.name in result.output
    (three_shards / "parts" / "main" / "manifest.sqlite").write_bytes(b"?" * 200)
    assert [fault.file for fault in verify(three_shards)] == ["manifest.sqlite"]


def test_export_and_import_by_command(three_shards, tmp_path):
    result, lines = run("export", three_shards, tmp_path / "rows.parquet")
    assert result.exit_code == 0 and result.stdout == "30 rows exported\n" and f"wrote {tmp_path / 'rows.parquet'}" in result.stderr
    result, lines = run("import", tmp_path / "rows.parquet", tmp_path / "copy")
    assert result.exit_code == 0 and result.stdout == "30 rows imported\n" and "next: understudy store show" in result.stderr
    assert describe(tmp_path / "copy")["rows"] == 30


def test_hostile_text_does_not_reach_the_terminal(tmp_path):
    """Prevents: a store from elsewhere rewriting the terminal with escape sequences."""
    header = Header(classes=2, teacher="\x1b[2Jt", data="d\r\n", transform="x", rights={"source": "\x1b]0;owned\x07"})
    with Writer(tmp_path, header, planned=10**6) as writer:
        writer.append(["\x1b[31mid"], 0, {"logits": np.full((1, 2), np.nan, np.float32)})
    text = run("show", tmp_path)[0].output
    assert "\x1b" not in text and "\x07" not in text and "\\x1b[2Jt" in text


def test_looking_and_recording_do_not_import_torch(three_shards):
    """`store show` has to answer at once, and a recording worker that only calls an endpoint should not need a second for torch."""
    code = ("import sys\nfrom typer.testing import CliRunner\nfrom understudy.cli.store import app\nimport understudy.store.writer\n"
            f"for verb in ('show', 'verify'):\n    assert CliRunner().invoke(app, [verb, {str(three_shards)!r}]).exit_code == 0\n"
            "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
