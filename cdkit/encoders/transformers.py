"""Text towers of the transformers library (CLIP with its projection, SigLIP), without the vision tower.

The library's tokenizers clean nothing but blanks and case. What they get here is the caption cleaned as import cleans
it for its `caption_id`, so that captions that share an id share an embedding: an embedding equals the library's own of
`clean_caption(text)`, and of the text itself where cleaning changes no more than blanks and case.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cdkit.core.config import did_you_mean
from cdkit.core.errors import CdkitError, ConfigError, InputError, NetworkError
from cdkit.core.startup import import_clip
from cdkit.core.text import clean_caption
from cdkit.encoders.causal_tower import CausalBlock, CausalTower, linear, two_layers
from cdkit.encoders.text_tower import TextTower
from cdkit.encoders.tokenizing import (
    ClipTokenizer,
    Counting,
    LibraryTokenizer,
    Tokenizer,
    is_standard_clip,
    pooled_positions,
    simple_tokenizer,
)

# Configurations from before transformers 4.32 say 2 and mean "the highest id".
LEGACY_END_ID = 2
MODEL_TYPES = {
    "clip": "CLIPTextModelWithProjection",
    "clip_text_model": "CLIPTextModelWithProjection",
    "siglip": "SiglipTextModel",
    "siglip_text_model": "SiglipTextModel",
}


def load_tower(location: str) -> TextTower:
    """The text tower of a local model folder or a hub id.

    Raises InputError when a folder is incomplete, NetworkError when the hub fails, ConfigError for other model types.
    """
    local = Path(location).expanduser().is_dir()
    source = str(Path(location).expanduser()) if local else location
    try:
        with quietly():
            config, model, report, tokenizer = _load(source, location)
    except CdkitError:
        raise
    except Exception as error:
        raise loading_error("transformers", location, local, error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"{location} lacks {len(missing)} weights of its text tower ({', '.join(missing[:2])}, …).",
            hint="Give a CLIP with its projection (CLIPModel or CLIPTextModelWithProjection).",
        )
    if config.model_type == "siglip_text_model":
        return _siglip_tower(model, tokenizer)
    return clip_tower(model, tokenizer)


def _load(source: str, location: str) -> tuple[Any, Any, dict[str, Any], Any]:
    """The text tower's config, the tower (a vision tower is never read), the loading report, the tokenizer."""
    import torch

    import_clip()
    import transformers

    config = _text_config(transformers.AutoConfig.from_pretrained(source), location)
    kind = getattr(transformers, MODEL_TYPES[config.model_type])
    model, report = kind.from_pretrained(source, config=config, dtype=torch.float32, output_loading_info=True)
    return config, model, report, transformers.AutoTokenizer.from_pretrained(source)


@contextmanager
def quietly() -> Iterator[None]:
    """The library draws a bar and lists the vision tower's weights as unexpected; both are meant to be."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def loading_error(library: str, location: str, local: bool, error: Exception) -> CdkitError:
    """What a library's failure to load a model means: a bad folder, or a hub that did not answer."""
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    if local:
        return InputError(
            f"{location} cannot be loaded by {library}: {reason}",
            hint="The folder may be incomplete or of another kind.",
        )
    return NetworkError(
        f"The model {location!r} could not be fetched for {library}: {reason}",
        hint="Check the name and the connection; or download it to a folder and give that.",
    )


def _text_config(config: Any, location: str) -> Any:
    """The text tower's own config out of a model's."""
    if config.model_type not in MODEL_TYPES:
        raise ConfigError(
            f"{location} is a {config.model_type!r} model{did_you_mean(config.model_type, MODEL_TYPES)}.",
            hint="Encoders of the transformers library are CLIP and SigLIP models.",
        )
    if not hasattr(config, "text_config"):
        return config
    text = config.text_config
    # A CLIPModel keeps the projection's width for both towers; its text part may say another.
    if hasattr(config, "projection_dim"):
        text.projection_dim = config.projection_dim
    return text


def clip_tower(model: Any, tokenizer: Any) -> TextTower:
    """The text tower of a loaded CLIPModel or CLIPTextModelWithProjection."""
    text, projection = model.text_model, model.text_projection
    config = text.config
    end_id = None if config.eos_token_id == LEGACY_END_ID else int(config.eos_token_id)
    holder = nn.ModuleDict({"text_model": text, "text_projection": projection})

    def padded(tokens: Tensor) -> Tensor:
        projected: Tensor = projection(text(input_ids=tokens).pooler_output)
        return projected

    return TextTower(
        module=holder,
        padded=padded,
        trimmed=_causal_tower(text, projection, end_id),
        tokenizer=_tokenizer(tokenizer, config.max_position_embeddings, end_id),
        context_length=config.max_position_embeddings,
        pad_id=int(tokenizer.pad_token_id),
        facts={
            "library": "transformers",
            "kind": "clip",
            "activation": config.hidden_act,
            "heads": config.num_attention_heads,
            "end": end_id,
        },
    )


def _causal_tower(text: Any, projection: Any, end_id: int | None) -> CausalTower:
    import torch

    blocks = []
    for layer in text.encoder.layers:
        attention = layer.self_attn
        maps = (attention.q_proj, attention.k_proj, attention.v_proj)
        blocks.append(
            CausalBlock(
                heads=attention.num_heads,
                norm_1=layer.layer_norm1,
                qkv=linear(torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps])),
                output=attention.out_proj,
                norm_2=layer.layer_norm2,
                mlp=two_layers(layer.mlp.fc1, layer.mlp.activation_fn, layer.mlp.fc2),
            )
        )
    return CausalTower(
        token_embedding=text.embeddings.token_embedding,
        positions=text.embeddings.position_embedding.weight,
        blocks=blocks,
        final_norm=text.final_layer_norm,
        projection=projection,
        end_id=end_id,
    )


def _siglip_tower(model: Any, tokenizer: Any) -> TextTower:
    """SigLIP attends both ways and pools the last position, padding included: only its full length is right."""
    config = model.config

    def padded(tokens: Tensor) -> Tensor:
        # Without an attention mask, as it was trained.
        pooled: Tensor = model(input_ids=tokens).pooler_output
        return pooled

    return TextTower(
        module=model,
        padded=padded,
        trimmed=None,
        tokenizer=library_tokenizer(tokenizer, config.max_position_embeddings, None, trims=False),
        context_length=config.max_position_embeddings,
        pad_id=int(tokenizer.pad_token_id),
        facts={
            "library": "transformers",
            "kind": "siglip",
            "activation": config.hidden_act,
            "heads": config.num_attention_heads,
        },
    )


class FastClipTokenizer(ClipTokenizer):
    """A transformers tokenizer of CLIP's 49,408 entries, by open_clip's way wherever the two read a text alike.

    They do not where it holds a special word of one of them, letters that are not composed (NFC), or characters that
    one of their versions of Unicode may not know.
    """

    def __init__(self, clip: Any, library: Callable[[], Any], special: Iterable[str], context_length: int) -> None:
        """library: gives the transformers tokenizer, asked only for texts that need it; special: its special words."""
        super().__init__(clip, context_length)
        self.library = library
        words = {*special, *map(clip.decoder.get, clip.all_special_ids)}
        self.special = re.compile("|".join(re.escape(word) for word in sorted(words)), re.IGNORECASE)

    def row(self, cleaned: str) -> list[int]:
        plain = cleaned.isprintable() and unicodedata.is_normalized("NFC", cleaned)
        if plain and not self.special.search(cleaned):
            return super().row(cleaned)
        ids: list[int] = self.library()(cleaned, verbose=False)["input_ids"]
        return ids


def _loaded(tokenizer: Any) -> Any:
    return tokenizer


def _tokenizer(tokenizer: Any, context_length: int, end_id: int | None) -> Tokenizer:
    clip = simple_tokenizer(context_length)
    if is_standard_clip(tokenizer.get_vocab(), clip.encoder):
        special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
        return FastClipTokenizer(clip, partial(_loaded, tokenizer), special, context_length)
    return library_tokenizer(tokenizer, context_length, end_id, trims=True)


def library_tokenizer(tokenizer: Any, context_length: int, end_id: int | None, *, trims: bool) -> LibraryTokenizer:
    """A transformers tokenizer, padded to the context and cut after the pooled token where the tower `trims`."""

    def pad(captions: list[str]) -> Any:
        cleaned = [clean_caption(caption) for caption in captions]
        return tokenizer(cleaned, padding="max_length", max_length=context_length, truncation=True)["input_ids"]

    ends = (lambda table: pooled_positions(table, end_id)) if trims else None
    return LibraryTokenizer(pad, counting(tokenizer, clean_caption), ends)


def counting(tokenizer: Any, clean: Callable[[str], str]) -> Counting:
    """What counts the tokens of captions, before truncation, with a transformers tokenizer behind a cleaning."""

    def count(captions: list[str]) -> Sequence[int]:
        return [len(row) for row in tokenizer([clean(caption) for caption in captions], verbose=False)["input_ids"]]

    return count
