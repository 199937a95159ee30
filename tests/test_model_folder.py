from __future__ import annotations

import fnmatch
import json

import pytest

from understudy import model_folder
from understudy.errors import DataError
from understudy.model_folder import Sentences


def write(folder, modules=(), pooling=None, length=None):
    """The files of sentence-transformers beside a model."""
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{kind}"} for kind in modules]))
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if length is not None:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    return folder


def test_a_folder_without_these_files_gives_the_plain_mean(tmp_path):
    assert model_folder.sentences(tmp_path) == Sentences("mean", False, None)


@pytest.mark.parametrize(
    ("modules", "pooling", "length", "expected"),
    [(["Transformer", "Pooling"], {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, 99, Sentences("cls", False, 99)),
     (["Transformer", "Pooling", "Normalize"], {"pooling_mode_mean_tokens": True}, None, Sentences("mean", True, None)),
     (["Transformer", "Pooling"], {"pooling_mode": "cls"}, None, Sentences("cls", False, None))])
def test_pooling_length_and_normalising_are_as_the_folder_says(tmp_path, modules, pooling, length, expected):
    assert model_folder.sentences(write(tmp_path, modules, pooling, length)) == expected


@pytest.mark.parametrize(("modules", "pooling"), [(["Transformer", "Pooling", "Dense"], None), ([], {"pooling_mode_max_tokens": True})])
def test_what_makes_another_vector_is_refused(tmp_path, modules, pooling):
    """Prevents: a student learns vectors that its teacher never gives, and the report praises it."""
    with pytest.raises(DataError, match="not known here"):
        model_folder.sentences(write(tmp_path, modules, pooling))


@pytest.mark.parametrize("said", [Sentences("mean", True, 64), Sentences("cls", False, 12)])
def test_what_is_written_is_what_is_read(tmp_path, said):
    for name, content in model_folder.described(16, said.length, said.pooling, said.normalise).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert model_folder.sentences(tmp_path) == said
    pooling = json.loads((tmp_path / "1_Pooling" / "config.json").read_text())
    assert pooling["word_embedding_dimension"] == 16 and sum(value is True for name, value in pooling.items() if "mode" in name) == 1


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(DataError, match="gives no model"):
        model_folder.sentences(tmp_path)


def test_a_model_on_the_hub_is_fetched_without_code_and_pickles(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: asked.append((name, options)) or str(tmp_path))
    assert model_folder.found("hf://owner/name@main-2") == str(tmp_path)
    (name, options), = asked
    assert name == "owner/name" and options["revision"] == "main-2"
    wanted = options["allow_patterns"]

    def fetched(file):
        return any(fnmatch.fnmatch(file, pattern) for pattern in wanted)

    assert all(fetched(file) for file in ("config.json", "model.safetensors", "model-00001-of-2.safetensors", "tokenizer.json",
                                          "tokenizer_config.json", "1_Pooling/config.json", "modules.json"))
    assert not any(fetched(file) for file in ("modeling_x.py", "pytorch_model.bin", "model.pt", "weights.pkl", "README.md"))


@pytest.mark.parametrize("path", ["owner/name", "nothing/here/at/all", "~/no-such-folder"])
def test_a_slip_in_a_path_never_asks_the_hub(path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *words, **options: pytest.fail("the hub was asked"))
    with pytest.raises(DataError, match="no such folder.*hf://owner/name"):
        model_folder.found(path)


def test_a_hub_that_does_not_answer_is_said(monkeypatch):
    import huggingface_hub

    def silent(*words, **options):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", silent)
    with pytest.raises(DataError, match='"hf://a/b" gives no model: got nobody there'):
        model_folder.found("hf://a/b")
