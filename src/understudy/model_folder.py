"""A model's folder in the Hugging Face layout: its configuration, its weights, and how sentence-transformers pools its states.

The transformers library is imported where a model is built. No code of a folder or hub is ever run, and weights are read from safetensors
alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from understudy import extras
from understudy.errors import DataError, RecipeError, four_parts

Pooling = Literal["mean", "cls"]
MODULES, POOLING, LENGTH = "modules.json", "1_Pooling/config.json", "sentence_bert_config.json"
SETTINGS = "config_sentence_transformers.json"
DROPOUTS = ("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop", "resid_dropout", "residual_dropout", "embedding_dropout",
            "hidden_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "activation_dropout",
            "classifier_dropout")  # fmt: skip
"""What configurations call it."""
FETCHED = ("config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer*", "special_tokens_map.json", "vocab*", "merges.txt",
           MODULES, POOLING, LENGTH, SETTINGS)  # fmt: skip
"""What is fetched of a model on the hub: no code, no pickled weights."""
HUB = "hf://"
WANTED = "a folder with config.json, model.safetensors and tokenizer.json, or hf://owner/name for one on the hub"


def library() -> Any:
    """The transformers package, silent. RecipeError where it is not installed."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import transformers
    except ImportError:
        raise RecipeError(four_parts(
            "pretrained models need the transformers package", got="it is not installed", expected="transformers",
            otherwise="The model could not be built", do=extras.install("hf"))) from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    return transformers


@lru_cache(maxsize=64)
def found(path: str) -> str:
    """The folder here of a path, or of `hf://owner/name` (`hf://owner/name@revision`) on the Hugging Face hub, of which configuration,
    tokenizer and safetensors are fetched once. DataError for what can't be had.

    A bare `owner/name` is a folder: else a slip in a path would fetch a stranger's model.
    """
    if not path.startswith(HUB):
        here = Path(path).expanduser()
        if here.is_dir():
            return str(here)
        raise unusable(path, FileNotFoundError("no such folder"))
    name, _, revision = path.removeprefix(HUB).partition("@")
    library()
    import huggingface_hub

    try:
        return str(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(FETCHED)))
    except Exception as error:  # of the network, the hub, or the disk
        raise unusable(path, error) from None


def configuration(path: str, config: Mapping[str, Any], dropout: float | None = None, **named: Any) -> Any:
    """The library's configuration of a folder (`found`), or where there is none of `config`; `named` are fields that it shall have."""
    kit, folder = library(), "" if config else found(path)
    try:
        made = (kit.AutoConfig.for_model(**{**config, **named}) if config else
                kit.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **named))  # fmt: skip
    except (OSError, ValueError) as error:
        raise unusable(path or "config", error) from None
    if dropout is not None:
        for name in DROPOUTS:
            if getattr(made, name, None) is not None:
                setattr(made, name, dropout)
    return made


def loaded(auto: str, path: str, config: Any, **options: Any) -> Any:
    """A folder's model, float32, as the library's class `auto` builds it. DataError for a folder that gives none.

    With `output_loading_info` among the options it is (model, what was missing).
    """
    try:
        return getattr(library(), auto).from_pretrained(
            found(path), config=config, dtype="float32", use_safetensors=True, trust_remote_code=False, local_files_only=True,
            **options)  # fmt: skip
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise unusable(path, error) from None


def unusable(path: str, error: Exception) -> DataError:
    """The error for a path that gives no model."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return DataError(four_parts(
        f'"{path}" gives no model', got=(lines or [type(error).__name__])[0][:300], expected=WANTED,
        otherwise="There would be nobody to learn from", do="Check the path; pickled weights (.bin) are refused: save with safetensors"))


def config_of(folder: str) -> dict[str, Any]:
    """config.json of a folder."""
    try:
        found = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unusable(folder, error) from None
    return dict(found)


def causal(config: Any) -> bool:
    """Whether a configuration is that of a decoder, or of an encoder with one."""
    from transformers.models.auto import modeling_auto

    names = config.architectures or []
    generates = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    fills = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return bool(decodes) or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) or generates and not fills


def refuse_causal(folder: str, config: Any) -> None:
    """DataError for a model that reads from left to right."""
    if causal(config):
        raise DataError(four_parts(
            f'"{folder}" is no encoder', got=", ".join(config.architectures or [config.model_type]), expected="an encoder such as BERT",
            otherwise="A token would be read without what stands behind it",
            do="Take an encoder: BERT, MiniLM, RoBERTa; a decoder teaches running text (arch: causal)"))


@dataclass(frozen=True)
class Sentences:
    """How a folder makes one vector of a text, as sentence-transformers writes it down.

    pooling: the mean of all tokens' states, or the first token's. normalise: whether the vector is divided by its length. length: most
    tokens of a text, None where the folder does not say.
    """

    pooling: Pooling
    normalise: bool
    length: int | None


def sentences(folder: str | os.PathLike[str]) -> Sentences:
    """What modules.json, 1_Pooling/config.json and sentence_bert_config.json say; the plain mean where they are not there.

    DataError for a pooling other than these two, and for a layer behind it that has weights of its own.
    """
    root = Path(found(str(folder)))
    kinds = [str(one.get("type", "")).rpartition(".")[2] for one in _json(root / MODULES, [])]
    other = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if other:
        raise DataError(four_parts(
            f'"{folder}" has a layer behind its encoder that is not known here', got=", ".join(other),
            expected="Transformer, Pooling, Normalize", otherwise="The student would learn vectors that the teacher never gives",
            do="Record the teacher's vectors yourself, and use teacher: {kind: stored}"))
    length = _json(root / LENGTH, {}).get("max_seq_length")
    return Sentences("cls" if _first(root) else "mean", "Normalize" in kinds, int(length) if length else None)


def _first(folder: Path) -> bool:
    """Whether a sentence's vector is its first token's state: what 1_Pooling/config.json says, and no where there is none."""
    said = _json(folder / POOLING, {})
    chosen = [name.removeprefix("pooling_mode_") for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    newer = said.get("pooling_mode", [])
    chosen += [newer] if isinstance(newer, str) else newer
    if any(name not in ("mean_tokens", "mean", "cls_token", "cls") for name in chosen) or len(chosen) > 1:
        raise DataError(four_parts(
            f'the pooling of "{folder}" is not known here', got=", ".join(chosen), expected="mean or cls",
            otherwise="The student would learn vectors that the teacher never gives", do="Compute the teacher's vectors yourself"))
    return chosen[:1] in (["cls_token"], ["cls"])


def _json(file: Path, otherwise: Any) -> Any:
    if not file.is_file():
        return otherwise
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unusable(str(file.parent), error) from None


def described(width: int, length: int, pooling: Pooling, normalise: bool) -> dict[str, bytes]:
    """The files by which sentence-transformers reads a folder's encoder and makes one vector of a text: {name: content}."""
    kind = "sentence_transformers.models."
    modules = [{"idx": 0, "name": "0", "path": "", "type": kind + "Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": kind + "Pooling"}]  # fmt: skip
    if normalise:
        modules.append({"idx": 2, "name": "2", "path": "2_Normalize", "type": kind + "Normalize"})
    modes = {f"pooling_mode_{name}": name == f"{pooling}_token{'s' if pooling == 'mean' else ''}"
             for name in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")}  # fmt: skip
    files: dict[str, Any] = {
        MODULES: modules, POOLING: {"word_embedding_dimension": width, **modes, "include_prompt": True},
        LENGTH: {"max_seq_length": length, "do_lower_case": False},
        SETTINGS: {
            "model_type": "SentenceTransformer", "prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"}}
    return {name: json.dumps(said, indent=2).encode() + b"\n" for name, said in files.items()}
