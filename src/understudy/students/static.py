"""Static sentence embeddings out of an encoder, without data: every token goes through the teacher once; optional tuning on plain text.

    made = distil("folder of the teacher", dimensions=256)     # half a minute on one core
    made = tune(made, texts, vectors("folder of the teacher", texts))
    made.model.save("folder")                                  # `understudy.static_embedding.load` reads it with numpy alone

The idea is Model2Vec's (Tulkens and van Dongen 2024, github.com/MinishLab/model2vec): the teacher's view of a token alone, PCA, and weights
that fall with frequency (SIF: Arora et al. 2017, "A simple but tough-to-beat baseline for sentence embeddings", eq. 1).
Where we deviate: the first token's state is taken in place of the mean of all three, PCA counts each token as often as it is expected
in text, and tuning matches the teacher's vectors in the table's own coordinates, so that no layer stands behind the table.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from understudy import tokens
from understudy.errors import DataError, RecipeError, four_parts
from understudy.static_embedding import StaticEmbedding, unknown

Pooling = Literal["first", "token", "mean"]
Progress = Callable[[int, int], None]
SIF = 3e-4
UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>")
log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Static:
    """What was distilled. model: ready for use. mean (H,), components (H, D): the PCA, by which the teacher's vectors are projected too."""

    model: StaticEmbedding
    mean: np.ndarray
    components: np.ndarray


@dataclass(frozen=True)
class Tuned:
    """static: with the table of the best epoch. held_out: its loss on the texts that were kept back, before and after every epoch."""

    static: Static
    held_out: tuple[float, ...]


def distil(folder: str | os.PathLike[str], *, dimensions: int = 256, pooling: Pooling = "first", sif: float | None = SIF,
           texts: Sequence[str] = (), words: Sequence[str] = (), batch: int = 256, device: str = "cpu",
           progress: Progress | None = None) -> Static:
    """A static embedding of an encoder's vocabulary; the same folder gives the same table.

    Args:
        folder: of the teacher in the Hugging Face layout: config.json, model.safetensors, tokenizer.json.
        dimensions: D, at most the teacher's width.
        pooling: what is taken of the teacher's last layer: the "first" token's state, the "token"'s own, or the "mean" of all.
        sif: the a of a / (a + p); None leaves all weights 1. 1e-3 to 1e-4 are usual; a smaller one silences frequent tokens more.
        texts: where there are any, p is counted in them; else it comes from the tokenizer (`expected`).
        words: whole words that become tokens of their own (`frequent_words` finds them); WordPiece only.
        progress: called with (tokens done, all tokens).

    Raises RecipeError for impossible settings, DataError for a folder that is no encoder or has no tokenizer.

    Works best for teachers that were trained for sentence vectors, in the language of their vocabulary. Hurts for a teacher that gives a
    token alone no sensible vector (decoders, encoders fresh from masked-language training).
    """
    source = tokenizer_of(folder)
    if pooling not in get_args(Pooling):
        raise RecipeError(four_parts("there is no such pooling", got=pooling, expected="first, token or mean",
                                     otherwise="It would not be known which state is meant", do="Name one of them"))
    encoder = teacher(folder).to(device)
    width = int(encoder.config.hidden_size)
    if not 1 <= dimensions <= width:
        raise RecipeError(four_parts(
            "dimensions don't fit the teacher", got=dimensions, expected=f"1 to {width}, the width of the teacher",
            otherwise="The further columns would be zeros that cost memory", do=f"Use {width}, or less"))
    tokenizer, pieces = bare(source, words)
    states = single_states(encoder, source, pieces, pooling, batch, progress)
    known = np.array([bool(one) for one in pieces])
    if known.sum() <= dimensions:
        raise RecipeError(four_parts(
            "there are more dimensions than tokens allow", got=f"{dimensions} of {int(known.sum())} tokens", expected="fewer than tokens",
            otherwise="Some columns would be noise", do="Use fewer dimensions"))
    share = expected(tokenizer, known) if not len(texts) else counted(tokenizer, known, texts)
    mean, components = pca(states[known], dimensions, share[known])
    rows = ((states - mean) @ components) * (weights(share, sif) * known)[:, None]
    about = {"schema": 1, "teacher": Path(folder).name, "pooling": pooling, "sif": sif, "counted": bool(len(texts)), "words": len(words)}
    return Static(StaticEmbedding(rows.astype(np.float32), tokenizer, about=about), mean, components)


def tune(static: Static, texts: Sequence[str], targets: np.ndarray, *, epochs: int = 4, lr: float = 1e-3, weight_lr: float = 3e-3,
         batch: int = 256, held_out: float = 0.1, seed: int = 0, progress: Progress | None = None) -> Tuned:
    """Train the table, and one weight a token, so that a text's mean points where the teacher's vector points.

    Loss: mean over texts of 1 - cos(mean of rows, projected target). A target is the teacher's vector at length 1, less the mean of them
    all, by the components of `static`; so the student's cosines are those of the teacher in that space. Adam. After each epoch the loss on
    the texts that were kept back decides; the best table is taken, and it is the untrained one where nothing helped.

    Args:
        texts: N of any kind, no labels: the nearer to what the model will read, the better. targets: (N, H) the teacher's vectors of them.
        lr: of the table, whose entries are brought to a standard deviation of 0.1 first. weight_lr: of the logarithm of the weights.
        held_out: share of the texts that is kept back. progress: called with (epochs done, all epochs).

    Raises DataError for targets that do not fit or are not finite, and for fewer than 20 texts with a known token; RecipeError for settings
    out of range.
    """
    if epochs < 1 or not 0 < held_out < 1 or batch < 1 or lr < 0 or weight_lr < 0:
        raise RecipeError(four_parts(
            "the tuning can't be run so", got=f"epochs {epochs}, held_out {held_out}, batch {batch}, lr {lr}, weight_lr {weight_lr}",
            expected="1 epoch or more, held_out between 0 and 1, batches of 1 or more, rates of 0 or more",
            otherwise="Nothing would be learnt, or nothing would say when to stop", do="Leave these settings out"))
    if targets.shape != (len(texts), len(static.components)) or not np.isfinite(targets).all():
        raise DataError(four_parts(
            "the teacher's vectors don't fit the texts", got=f"{targets.shape}, or a value that is not finite",
            expected=(len(texts), len(static.components)), otherwise="Texts would learn another text's vector",
            do="Take them from the teacher of this embedding: vectors(folder, texts)"))
    model = static.model
    bags = Bags(*model.tokens(texts))
    full = np.flatnonzero(bags.counts)
    if len(full) < 20:
        raise DataError(four_parts(
            "there are too few texts to tune on", got=f"{len(full)} with a known token", expected="20 or more, better thousands",
            otherwise="The table would learn them by heart", do="Leave the tuning out, or give more texts"))
    unit = targets / np.maximum(np.linalg.norm(targets, axis=1, keepdims=True), 1e-12)
    goal = F.normalize(torch.from_numpy(((unit - unit[full].mean(0)) @ static.components).astype(np.float32)), dim=1)
    draw = np.random.default_rng(seed)
    kept, learnt = np.split(draw.permutation(full), [max(1, int(len(full) * held_out))])

    rows = model.vectors()
    table = torch.from_numpy(rows * (0.1 / max(float(rows[np.abs(rows).sum(1) > 0].std()), 1e-12))).requires_grad_()
    weight = torch.zeros(len(rows)).requires_grad_()
    adam = torch.optim.Adam([{"params": [table], "lr": lr}, {"params": [weight], "lr": weight_lr}], fused=True)
    losses = [_held_out(table, weight, bags, goal, kept)]
    best = (table * weight.exp()[:, None]).detach().clone()
    for epoch in range(epochs):
        order = draw.permutation(learnt)
        for start in range(0, len(order), batch):
            chosen = order[start:start + batch]
            adam.zero_grad()
            cosine_loss(table, weight, bags, goal, chosen).mean().backward()
            adam.step()
        losses.append(_held_out(table, weight, bags, goal, kept))
        if losses[-1] <= min(losses):
            best = (table * weight.exp()[:, None]).detach().clone()
        if progress:
            progress(epoch + 1, epochs)
    log.info("tuned on %d texts: held-out loss %.4f, then %.4f", len(learnt), losses[0], min(losses))
    about = {**model.about, "tuned_on": len(learnt)}
    made = replace(model, table=best.numpy(), weights=None, mapping=None, about=about)
    return Tuned(replace(static, model=made), tuple(losses))


def salads(static: Static, passes: int = 2, length: int = 8, seed: int = 0) -> list[str]:
    """Texts of random tokens, in which every token occurs about `passes` times: for `tune`, alone or beside real text.

    Real text moves only the tokens that it holds, away from all others; here each has a place among the others. What a tokenizer reads in
    such a text may differ from what was drawn, where two pieces join to another.
    """
    inner, draw = static.model.tokenizer.inner, np.random.default_rng(seed)
    known = np.flatnonzero(np.abs(static.model.vectors()).sum(1) > 0)
    orders = [draw.permutation(known) for _ in range(passes)]
    return [inner.decode(order[start:start + length].tolist()) for order in orders for start in range(0, len(order), length)]


@dataclass(frozen=True, eq=False)
class Bags:
    """The tokens of N texts. ids: all, one text after the other; counts: (N,) how many each has."""

    ids: np.ndarray
    counts: np.ndarray

    def take(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """(ids of these texts, where each text begins in them)."""
        counts = self.counts[rows]
        starts = np.cumsum(counts) - counts
        first = (np.cumsum(self.counts) - self.counts)[rows]
        at = np.repeat(first - starts, counts) + np.arange(counts.sum())
        return torch.from_numpy(self.ids[at]), torch.from_numpy(starts)


def cosine_loss(table: Tensor, weight: Tensor, bags: Bags, goal: Tensor, rows: np.ndarray) -> Tensor:
    """(len(rows),) 1 - cos(sum of exp(weight) * row over a text's tokens, its goal). table (V, D), weight (V,), goal (N, D) of length 1."""
    ids, starts = bags.take(rows)
    sums = F.embedding_bag(ids, table, starts, mode="sum", per_sample_weights=weight.exp()[ids])
    return 1 - (F.normalize(sums, dim=1) * goal[torch.from_numpy(rows)]).sum(1)


def _held_out(table: Tensor, weight: Tensor, bags: Bags, goal: Tensor, rows: np.ndarray) -> float:
    with torch.no_grad():
        return float(cosine_loss(table, weight, bags, goal, rows).mean())


def pca(states: np.ndarray, dimensions: int, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (H,) and components (H, D) of rows that count `share` (N,) each, float64; a component's largest entry is positive.

    The eigenvectors of the weighted covariance, largest eigenvalue first: sum_i share_i (x_i - mean)(x_i - mean)'. The same input gives the
    same output, because the sign, which an eigenvector leaves open, is fixed.
    """
    share = share.astype(np.float64) / share.sum()
    rows = states.astype(np.float64)
    mean = share @ rows
    centred = rows - mean
    _, vectors = np.linalg.eigh((centred * share[:, None]).T @ centred)
    components = vectors[:, ::-1][:, :dimensions]
    largest = np.abs(components).argmax(axis=0)
    return mean, components * np.sign(components[largest, np.arange(dimensions)])


def weights(share: np.ndarray, sif: float | None) -> np.ndarray:
    """(V,) a / (a + p) for p = share (V,): near 1 for rare tokens, small for frequent ones (Arora et al. 2017, eq. 1). None gives ones."""
    if sif is None:
        return np.ones(len(share))
    if not 0 < sif < float("inf"):
        raise RecipeError(four_parts("sif must be positive", got=sif, expected="a positive number such as 3e-4",
                                     otherwise="Frequent or all tokens would vanish", do="Use 3e-4, or null for no weights"))
    return sif / (sif + share)


def expected(tokenizer: tokens.Tokenizer, known: np.ndarray) -> np.ndarray:
    """(V,) how often each token is expected in text, in shares that sum to 1; 0 where not `known`.

    A Unigram tokenizer says it itself: the exponentials of its scores. Else Zipf's law, 1 / (rank + 1), with tokens in the order of their
    ids from rank 1: those that are trained by frequency, as BERT's and all BPEs are, have it roughly so. Where ids are in no such order
    (an alphabetic word list), count in texts.
    """
    model = json.loads(tokenizer.text)["model"]
    if model.get("type") == "Unigram":
        found = np.zeros(len(known))
        found[:len(model["vocab"])] = np.exp([score for _, score in model["vocab"]])
    else:
        found = 1 / (np.cumsum(known) + 1.0)
    found = np.where(known, found, 0.0)
    return found / found.sum()


def counted(tokenizer: tokens.Tokenizer, known: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """(V,) share of each token in the texts, each counted once more than it occurs; 0 where not `known`."""
    found = known.astype(np.float64)
    for start in range(0, len(texts), 1024):
        for one in tokenizer.inner.encode_batch_fast(list(texts[start:start + 1024]), add_special_tokens=False):
            np.add.at(found, one.ids, 1)
    found = np.where(known, found, 0.0)
    return found / found.sum()


def frequent_words(source: tokens.Tokenizer, texts: Sequence[str], most: int, at_least: int = 5) -> list[str]:
    """The most frequent words of the texts that the tokenizer splits, as it sees them (lower case, say); ties in alphabetic order."""
    inner, count = source.inner, Counter[str]()
    for text in texts:
        plain = inner.normalizer.normalize_str(text) if inner.normalizer else text
        count.update(word for word, _ in inner.pre_tokenizer.pre_tokenize_str(plain))
    found = [word for word, times in sorted(count.items(), key=lambda item: (-item[1], item[0])) if times >= at_least and word.isalpha()]
    vocabulary = inner.get_vocab(with_added_tokens=True)
    return [word for word in found if word not in vocabulary][:most]


def bare(source: tokens.Tokenizer, words: Sequence[str] = ()) -> tuple[tokens.Tokenizer, list[tuple[int, ...]]]:
    """(a tokenizer for plain text, for each of its tokens the teacher's ids, none where it gets no vector).

    No special tokens around a text, no padding, no truncation. From vocabularies of whole pieces (WordPiece, WordLevel) special and unused
    tokens are taken out, so that no text spells one; elsewhere ids stay, and special tokens have zeros.
    RecipeError for `words` where the tokenizer is no WordPiece.
    """
    content = json.loads(source.text)
    model, added = content["model"], content.get("added_tokens") or []
    content.update(post_processor=None, padding=None, truncation=None)
    special = {one["content"] for one in added if one.get("special")} | ({model["unk_token"]} if model.get("unk_token") else set())
    if words and model.get("type") != "WordPiece":
        raise RecipeError(four_parts(
            "words can't be added to this tokenizer", got=model.get("type"), expected="WordPiece",
            otherwise="The tokenizer would go on splitting them", do="Leave words out"))
    if model.get("type") in ("WordPiece", "WordLevel"):
        names = [name for name, _ in sorted(model["vocab"].items(), key=lambda item: item[1])]
        names = [name for name in names if name == model["unk_token"] or name not in special and not UNUSED.fullmatch(name)]
        new = [word for word in dict.fromkeys(words) if word not in model["vocab"]]
        pieces: list[tuple[int, ...]] = [() if name == model["unk_token"] else (model["vocab"][name],) for name in names]
        pieces += [tuple(one.ids) for one in source.inner.encode_batch_fast(new, add_special_tokens=False)]
        model["vocab"] = {name: at for at, name in enumerate(names + new)}
        content["added_tokens"] = []
        return tokens.Tokenizer(json.dumps(content, ensure_ascii=False), 0), pieces
    pieces = [()] * source.size
    for name, at in source.inner.get_vocab(with_added_tokens=True).items():
        pieces[at] = () if name in special or at == unknown(content) else (at,)
    return tokens.Tokenizer(json.dumps(content, ensure_ascii=False), 0), pieces


def single_states(encoder: Any, source: tokens.Tokenizer, pieces: Sequence[tuple[int, ...]], pooling: Pooling, batch: int = 256,
                  progress: Progress | None = None) -> np.ndarray:
    """(V, H) float32: the last layer's state of each token between the special tokens that the tokenizer puts around a text; else zeros."""
    before, after = around(source)
    found = np.zeros((len(pieces), int(encoder.config.hidden_size)), dtype=np.float32)
    lengths, done = np.array([len(one) for one in pieces]), 0
    for length in np.unique(lengths[lengths > 0]):
        group = np.flatnonzero(lengths == length)
        for start in range(0, len(group), batch):
            rows = group[start:start + batch]
            ids = torch.tensor([[*before, *pieces[row], *after] for row in rows])
            hidden = states_of(encoder, ids, torch.ones_like(ids))
            if pooling == "first":
                chosen = hidden[:, 0]
            else:
                chosen = (hidden if pooling == "mean" else hidden[:, len(before):len(before) + int(length)]).mean(1)
            found[rows] = chosen.numpy()
            done += len(rows)
            if progress:
                progress(done, int((lengths > 0).sum()))
    return found


def vectors(folder: str | os.PathLike[str], texts: Sequence[str], *, length: int = 128, batch: int = 64, device: str = "cpu",
            progress: Progress | None = None) -> np.ndarray:
    """(N, H) float32: the teacher's vectors of texts, pooled as its folder says (1_Pooling/config.json: mean, or the first token's state).

    length: tokens of a text that are read. Not divided by their lengths. progress: called with (texts done, all texts).
    """
    source, encoder, first = tokenizer_of(folder), teacher(folder).to(device), pools_first(Path(folder))
    counts = np.minimum(source.lengths(texts), length)
    order, found = np.argsort(counts, kind="stable"), np.zeros((len(texts), int(encoder.config.hidden_size)), dtype=np.float32)
    for start in range(0, len(texts), batch):
        rows = order[start:start + batch]
        ids = torch.from_numpy(source.encode([texts[row] for row in rows], int(counts[rows[-1]])).astype(np.int64))
        mask = (torch.arange(ids.shape[1]) < torch.from_numpy(counts[rows])[:, None]).long()
        hidden = states_of(encoder, ids, mask)
        pooled = hidden[:, 0] if first else (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        found[rows] = pooled.numpy()
        if progress:
            progress(start + len(rows), len(texts))
    return found


def states_of(encoder: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """(B, L, H) float32 on the CPU: the last layer's states."""
    with torch.inference_mode():
        found: Tensor = encoder(input_ids=ids.to(encoder.device), attention_mask=mask.to(encoder.device)).last_hidden_state
    return found.float().cpu()


def around(source: tokens.Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens before and behind every text."""
    one = source.inner.encode("a")
    first = next((at for at, mark in enumerate(one.special_tokens_mask) if not mark), 0)
    return tuple(one.ids[:first]), source.closing


def pools_first(folder: Path) -> bool:
    """Whether a sentence's vector is its first token's state: what 1_Pooling/config.json says, and no where there is none."""
    file = folder / "1_Pooling" / "config.json"
    if not file.is_file():
        return False
    said = json.loads(file.read_text(encoding="utf-8"))
    chosen = [name.removeprefix("pooling_mode_") for name, on in said.items() if name.startswith("pooling_mode_") and on is True]
    newer = said.get("pooling_mode", [])
    chosen += [newer] if isinstance(newer, str) else newer
    if any(name not in ("mean_tokens", "mean", "cls_token", "cls") for name in chosen) or len(chosen) > 1:
        raise DataError(four_parts(
            f'the pooling of "{folder}" is not known here', got=", ".join(chosen), expected="mean or cls",
            otherwise="The student would learn vectors that the teacher never gives", do="Compute the teacher's vectors yourself"))
    return chosen[:1] in (["cls_token"], ["cls"])


def tokenizer_of(folder: str | os.PathLike[str]) -> tokens.Tokenizer:
    """The folder's tokenizer; one without a padding token will do, because masks say what counts."""
    file = Path(folder) / tokens.FILE
    if not file.is_file():
        raise DataError(four_parts(
            f'"{folder}" has no tokenizer', got=f"no {tokens.FILE}", expected=f"the {tokens.FILE} that lies beside the weights",
            otherwise="There would be no vocabulary to ask the teacher about",
            do="Save the model's fast tokenizer there: tokenizer.save_pretrained(folder)"))
    return tokens.Tokenizer(file.read_text(encoding="utf-8"), 0)


def teacher(folder: str | os.PathLike[str]) -> Any:
    """The folder's encoder in eval mode, float32; no code of a folder is run, and weights are read from safetensors alone.

    Raises RecipeError where transformers is not installed, DataError for a folder that gives no encoder, or a causal model.
    """
    try:
        import transformers
    except ImportError:
        raise RecipeError(four_parts(
            "an encoder needs the transformers package", got="it is not installed", expected="pip install 'understudy[hf]'",
            otherwise="The teacher could not be built", do="Install it")) from None
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    said = {"trust_remote_code": False, "local_files_only": True}
    try:
        if not Path(folder).is_dir():
            raise OSError("no such folder")
        config = transformers.AutoConfig.from_pretrained(folder, **said)
        if causal(config):
            raise DataError(four_parts(
                f'"{folder}" is no encoder', got=", ".join(config.architectures or [config.model_type]), expected="an encoder such as BERT",
                otherwise="A token alone would get the vector of what may follow it, and a text's mean would say little",
                do="Take a teacher for sentence vectors, all-MiniLM-L6-v2 say"))
        return transformers.AutoModel.from_pretrained(folder, config=config, dtype="float32", use_safetensors=True, **said).eval()
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise DataError(four_parts(
            f'"{folder}" gives no encoder', got=(lines or [type(error).__name__])[0][:300],
            expected="a folder with config.json, model.safetensors and tokenizer.json", otherwise="There would be nobody to learn from",
            do="Check the path; pickled weights (.bin) are refused: save with safetensors")) from None


def causal(config: Any) -> bool:
    """Whether a configuration is that of a decoder, or of an encoder with one."""
    from transformers.models.auto import modeling_auto

    names = config.architectures or []
    generates = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    fills = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    decodes = getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False)
    return bool(decodes) or any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names) or generates and not fills
