"""The CLIP tokenizer, built from the vocabulary that ships with open_clip, and the seed rule of untrained rows."""

from __future__ import annotations

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cdkit.core.errors import InputError

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

VOCABULARY_SIZE = 49408
CONTEXT = 77
START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
START_ID, END_ID = 49406, 49407
# The usual 0.02 leaves words too alike after a short training for the U-Net to tell them apart.
ROW_DEVIATION = 0.25
ROW_SEED = 20231


def bpe_file() -> Path:
    """Where open_clip keeps CLIP's merges (found without importing it, which takes seconds)."""
    package = importlib.util.find_spec("open_clip")
    folder = Path(package.origin).parent if package and package.origin else Path()
    path = folder / "bpe_simple_vocab_16e6.txt.gz"
    if not path.is_file():
        raise InputError(
            "CLIP's vocabulary file bpe_simple_vocab_16e6.txt.gz is missing.", hint="pip install open_clip_torch"
        )
    return path


def byte_letters() -> list[str]:
    """The printable letter CLIP's BPE uses for each byte, in vocabulary order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(len(hidden))]


@lru_cache(maxsize=1)
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token to id, and the merges in order: CLIP's own 49,408 entries."""
    lines = gzip.decompress(bpe_file().read_bytes()).decode("utf-8").split("\n")
    merges = [tuple(line.split()) for line in lines[1 : VOCABULARY_SIZE - 256 - 2 - 256 + 1]]
    letters = byte_letters()
    entries = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    entries += [START_TOKEN, END_TOKEN]
    return {entry: index for index, entry in enumerate(entries)}, [(first, second) for first, second in merges]


def load_tokenizer() -> CLIPTokenizer:
    """The tokenizer Stable Diffusion uses, from the same vocabulary."""
    from transformers import CLIPTokenizer

    entries, merges = vocabulary()
    return CLIPTokenizer(
        vocab=dict(entries),
        merges=list(merges),
        unk_token=END_TOKEN,
        bos_token=START_TOKEN,
        eos_token=END_TOKEN,
        pad_token=END_TOKEN,
        model_max_length=CONTEXT,
    )


def seeded_rows(width: int) -> np.ndarray:
    """The token table before training, float32 (49408, width): every row that training does not touch stays so.

    Built from Philox's raw bits by adding four 16-bit numbers (close to normal), because those bits are the same on
    every platform and library version while ready-made normal samplers change between them.
    """
    bits = np.random.Philox(key=ROW_SEED).random_raw(VOCABULARY_SIZE * width)
    parts = bits.astype("<u8", copy=False).view("<u2").reshape(-1, 4)
    totals = parts[:, 0].astype(np.int32)
    for column in range(1, 4):
        totals += parts[:, column]
    mean, variance = 4 * 65535 / 2, 4 * (65536.0**2 - 1) / 12
    # Every total there can be is worked out once.
    values = ((np.arange(4 * 65535 + 1) - mean) / variance**0.5 * ROW_DEVIATION).astype(np.float16).astype(np.float32)
    rows: np.ndarray = values[totals].reshape(VOCABULARY_SIZE, width)
    return rows
