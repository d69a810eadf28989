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
from guidance.pocket.meshes import TRAIN
from guidance.pocket.model import TOKENS
from guidance.pocket.model_captions import CALLED, NOUNS, called
from guidance.stable_diffusion import WORDS, Directions

# What is left out of the sentences' families: the words for these say too little.
WORDLESS = ("blobs", "revolution")
POSSIBLE = (*NOUNS, *CALLED.values())  # what models may be called
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
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


def strayed(sentence: str, rng: np.random.Generator) -> str:
    """With a made-up word after one of its own, so that words which nobody taught are passed over."""
    made = "".join(str(rng.choice(list(kind))) for kind in (CONSONANTS, VOWELS) * int(rng.integers(1, 4)))
    made += str(rng.choice(list(CONSONANTS))) * int(rng.integers(2))
    words = sentence.split(" ")
    words.insert(int(rng.integers(1, len(words))), made)
    return articled(" ".join(words))


def articled(sentence: str) -> str:
    """`a` before a vowel is `an`."""
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)


def corpus(with_models: bool = False) -> list[str]:
    """Sentences that hold every word there is a piece for; with_models: those that models may be called too."""
    return [*wordings(), *(POSSIBLE if with_models else ())]


def wordings() -> list[str]:
    """What is said of the procedural objects and of views, with every word of it."""
    rng = np.random.default_rng(0)
    captions = [make(family, seed).caption for family in [*SPOKEN, *SCENES] for seed in range(MEMBERS)]
    others = [said(caption, rng) for caption in captions]
    return [*captions, *others, *Directions().names]


def vocabulary(sentences: Iterable[str]) -> list[str]:
    """Every word of them, sorted."""
    return sorted({word for sentence in sentences for word in re.findall(r"[a-z]+", sentence.lower())})


def build_tokenizer(words: list[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with pieces learnt from these words: each of them is one piece, any other falls into letters and
    parts. The same pieces in the same order whenever it is called."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Letters that end a word are given, those too that end none of ours: the trainer would find them in an order of its
    # own, another each time, by which it breaks ties.
    ends = [f"{letter}</w>" for letter in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False,
        special_tokens=["<|startoftext|>", "<|endoftext|>", *ends], min_frequency=1,
    )  # fmt: skip
    learner.train_from_iterator(words + list(",.-'"), trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=learner.get_vocab(), merges=merges, model_max_length=TOKENS)


def save_tokenizer(folder: Path, words_folder: Path, with_models: bool = False) -> None:
    """The tokenizer as the published folders have it, and the list of the words that a training with it says: those of
    nouns that no training model is called by have pieces, and nobody teaches them."""
    sentences = wordings()
    tokenizer = build_tokenizer(vocabulary([*sentences, *(POSSIBLE if with_models else ())]))
    words = vocabulary([*sentences, *(called(TRAIN) if with_models else ())])
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pieces = dict(sorted(model["vocab"].items(), key=lambda item: item[1]))
    (folder / "vocab.json").write_text(json.dumps(pieces, ensure_ascii=False))
    merges = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    (folder / "tokenizer.json").unlink()  # the published ones have the two files above
    (words_folder / WORDS).write_text("\n".join(words) + "\n")
