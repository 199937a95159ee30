"""Small folders, made by the tests that read them: in the Hugging Face layout, and of documents."""

from __future__ import annotations

import json
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = (
    "play", "music", "stop", "the", "weather", "rain", "##ing", "##ed", "light", "on", "off", "turn", "bank", "money", "send", "un",
    "##known",
)  # fmt: skip


SENTENCES = ("the cat sat", "the dog ran", "a bird sang", "the cat ran", "a dog sat")


def documents(folder: Path) -> Path:
    """Forty documents of a small language, a file each, some longer than a row of 160 letters."""
    import random

    dice = random.Random(0)
    folder.mkdir(exist_ok=True)
    for number in range(40):
        said = [f"{dice.choice(SENTENCES)} {dice.choice(('home', 'away'))}." for _ in range(dice.randint(3, 14))]
        (folder / f"{number:02d}.txt").write_text(" ".join(said), encoding="utf-8")
    return folder


def wordpiece(pad: str = "[PAD]") -> object:
    """A WordPiece tokenizer as BERT has it: special tokens, letters, a few words and endings."""
    import tokenizers

    special = [pad, "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece({name: at for at, name in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.add_special_tokens(special)
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    made.enable_padding(pad_token=pad, length=12)  # as sentence-transformers save theirs
    made.enable_truncation(12)
    return made


def embedder(folder: Path, *, layers: int = 3, width: int = 16, seed: int = 0) -> Path:
    """The same as sentence-transformers saves it: vectors are means of tokens' states, divided by their length."""
    encoder(folder, layers=layers, width=width, seed=seed)
    kinds = ("Transformer", "Pooling", "Normalize")
    modules = [{"idx": at, "name": str(at), "path": f"{at}_{kind}" if at else "", "type": f"sentence_transformers.models.{kind}"}
               for at, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    return folder


def pairs(folder: Path, *, train: int = 150, validation: int = 40, test: int = 60) -> dict[str, Path]:
    """Files of sentence pairs as STS-B has them, without header: the score is how many of four words both sentences have."""
    import random

    dice, found = random.Random(0), {}
    words = [word for word in WORDS if not word.startswith("##") and word != "un"]
    for part, count in (("train", train), ("dev", validation), ("test", test)):
        lines = []
        for number in range(count):
            first, shared = dice.sample(words, 4), dice.randrange(5)
            second = first[:shared] + dice.sample(words, 4 - shared)
            lines.append(f"main\timages\t2014\t{number}\t{shared}\t{' '.join(first)}\t{' '.join(second)}")
        found[part] = folder / f"sts-{part}.tsv"
        found[part].write_text("\n".join(lines) + "\n")
    return found


def encoder(folder: Path, *, layers: int = 2, width: int = 16, seed: int = 0) -> Path:
    """A BERT without a head, its tokenizer, and its weights as safetensors."""
    import torch
    import transformers

    torch.manual_seed(seed)
    made = wordpiece()
    config = transformers.BertConfig(
        vocab_size=made.get_vocab_size(), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=2 * width,
        max_position_embeddings=64, pad_token_id=0)
    transformers.BertModel(config).save_pretrained(folder)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[PAD]", "tokenizer_class": "BertTokenizer"}))
    return folder
