"""The vocabulary entries nearest to a token by a base model's own token embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cdkit.errors import InputError, NetworkError
from cdkit.file_kinds import check_weight_folder
from cdkit.inputs import EMBEDDED
from cdkit.tokens.modifiers import Neighbour, Pick
from cdkit.tokens.vocabulary import Vocabulary

if TYPE_CHECKING:
    import numpy as np

SHOWN = 5


def embedding_table(base: str) -> np.ndarray:
    """Token embeddings of a base model's first text encoder, float32 [vocabulary size, width].

    Raises InputError for a folder without one, NetworkError when the hub fails.
    """
    import numpy as np

    if base == EMBEDDED or base.startswith(f"{EMBEDDED}:"):
        from cdkit import embedded

        model = embedded.load_pipeline().text_encoder
    else:
        model = _text_encoder(base)
    weight = model.get_input_embeddings().weight.detach().float().cpu().numpy()
    return np.ascontiguousarray(weight, dtype=np.float32)


def _text_encoder(base: str) -> object:
    from transformers import CLIPTextModel

    folder = Path(base).expanduser()
    part = folder / "text_encoder"
    if folder.exists() and not part.is_dir():
        raise InputError(f"{base} holds no text_encoder/ folder.", hint="Give a diffusers model folder or a hub id.")
    check_weight_folder(part)
    variants = {path.suffixes[-2] for path in part.glob("*model.*.*") if path.suffix in (".safetensors", ".bin")}
    whole = not part.is_dir() or any(part.glob("model.safetensors")) or any(part.glob("pytorch_model.bin"))
    variant = None if whole else next((suffix[1:] for suffix in sorted(variants)), None)
    try:
        return CLIPTextModel.from_pretrained(
            str(folder) if folder.exists() else base, subfolder="text_encoder", variant=variant
        )
    except Exception as error:  # hub, file and shape errors alike
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = f"The text encoder of {base} cannot be loaded: {first}"
        if folder.exists():
            raise InputError(message, hint="The files may be incomplete.") from error
        raise NetworkError(message, hint="Check the name and the network, or give a local model folder.") from error


def add_neighbours(
    picks: Sequence[Pick], vocabulary: Vocabulary, table: np.ndarray, number: int = SHOWN
) -> tuple[Pick, ...]:
    """The picks with their `number` nearest entries by cosine, nearest first; themselves and special tokens left out.

    table: float32 [rows, width], row per token id. Raises InputError when it has fewer rows than the vocabulary.
    """
    import numpy as np

    if len(table) < len(vocabulary):
        raise InputError(
            f"The base model has {len(table)} token embeddings, the tokenizer {len(vocabulary)} entries.",
            hint="Give the base model's own --tokenizer.",
        )
    if not picks:
        return ()
    lengths = np.linalg.norm(table, axis=1, keepdims=True)
    unit = table / np.maximum(lengths, np.finfo(np.float32).tiny)
    ids = [pick.token_id for pick in picks]
    cosines = unit[ids] @ unit[: len(vocabulary)].T
    cosines[:, sorted(vocabulary.specials)] = -np.inf
    cosines[range(len(ids)), ids] = -np.inf
    found = []
    for pick, row in zip(picks, cosines, strict=True):
        order = np.argsort(-row, kind="stable")[:number].tolist()
        near = tuple(
            Neighbour(vocabulary.entries[index], float(row[index])) for index in order if np.isfinite(row[index])
        )
        found.append(replace(pick, neighbours=near))
    return tuple(found)
