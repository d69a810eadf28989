"""What is said of an object and of the view: sentences for the text prior, and the tokenizer that reads them.

A caption is an object's own, in one of several wordings; a view's name (stable_diffusion.Directions) follows it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from guidance.pocket.families import FAMILIES, SCENES, make
from guidance.pocket.model import TOKENS
from guidance.pocket.model_captions import CALLED, NOUNS
from guidance.stable_diffusion import WORDS, Directions

# What is left out of the sentences' families: the words for these say too little.
WORDLESS = ("blobs", "revolution")
MEMBERS = 400  # of a family: they say all of its words
SPOKEN = [name for name in FAMILIES if name not in WORDLESS]
SYNONYMS: dict[str, tuple[str, ...]] = {
    "ball": ("ball", "sphere"),
    "cube": ("cube", "cube", "block"),
    "aeroplane": ("aeroplane", "airplane", "plane"),
    "grey": ("grey", "gray"),
    "chequered": ("chequered", "checkered"),
    "dotted": ("dotted", "spotted"),
    "beside": ("beside", "next to"),
    "on": ("on", "on", "on top of"),
    "crown": ("crown", "leaves"),
    "vase": ("vase", "pot"),
    "wooden": ("wooden", "wood"),
    "golden": ("golden", "gold"),
    "disc": ("disc", "disk"),
}
PHRASES = (
    (r"\ba sitting (.*)animal", r"a sitting \1cat"),
    (r"\ba standing (.*)animal", r"a standing \1dog"),
    (r"\btoy figure", "toy man"),
)


def said(caption: str, rng: np.random.Generator) -> str:
    """One wording of a caption: synonyms, now and then the details left out."""
    if rng.random() < 0.5:
        for pattern, wording in PHRASES:
            caption = re.sub(pattern, wording, caption)
    if rng.random() < 0.25:
        caption = caption.split(" with ")[0]
    words = [str(rng.choice(SYNONYMS.get(word, (word,)))) for word in caption.split(" ")]
    return articled(" ".join(words))


def articled(sentence: str) -> str:
    """`a` before a vowel is `an`."""
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)


def corpus(with_models: bool = False) -> list[str]:
    """Sentences that hold every word there is; with_models: those of the models' captions too."""
    rng = np.random.default_rng(0)
    captions = [make(family, seed).caption for family in [*SPOKEN, *SCENES] for seed in range(MEMBERS)]
    wordings = [said(caption, rng) for caption in captions]
    return [*captions, *wordings, *Directions().names, *((*NOUNS, *CALLED.values()) if with_models else ())]


def vocabulary(sentences: Iterable[str]) -> list[str]:
    """Every word of them, sorted."""
    return sorted({word for sentence in sentences for word in re.findall(r"[a-z]+", sentence.lower())})


def build_tokenizer(words: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with pieces learnt from these words: each of them is one piece, any other falls into letters and
    parts."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=["<|startoftext|>", "<|endoftext|>"], min_frequency=1,
    )  # fmt: skip
    learner.train_from_iterator(words + list(",.-'"), trainer)
    pieces = learner.get_vocab()
    for letter in alphabet:  # a letter that ends no word of ours may still end one of the user's
        pieces.setdefault(f"{letter}</w>", len(pieces))
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=pieces, merges=merges, model_max_length=TOKENS)


def save_tokenizer(folder: Path, words_folder: Path, with_models: bool = False) -> None:
    """The tokenizer as the published folders have it, and the list of the words that it was made of."""
    words = vocabulary(corpus(with_models))
    tokenizer = build_tokenizer(words)
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pieces = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(pieces, ensure_ascii=False))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    (folder / "tokenizer.json").unlink()  # the published ones have the two files above
    (words_folder / WORDS).write_text("\n".join(words) + "\n")
