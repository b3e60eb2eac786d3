"""Text towers of open_clip: listed models, hub models and local folders, without the vision tower."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cdkit.core.config import did_you_mean
from cdkit.core.errors import CdkitError, ConfigError, InputError
from cdkit.core.storage import read_json
from cdkit.encoders.causal_tower import CausalBlock, CausalTower, linear, two_layers
from cdkit.encoders.text_tower import TextTower
from cdkit.encoders.tokenizing import (
    ClipTokenizer,
    Counting,
    LibraryTokenizer,
    Tokenizer,
    open_clip_library,
    pooled_positions,
)
from cdkit.encoders.transformers import counting, loading_error

CONFIG_NAME = "open_clip_config.json"
HUB_PREFIX = "hf-hub:"
# open_clip builds both towers; this one in place of the vision tower costs nothing and is thrown away.
TINY_VISION = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 16}
# Parameters of a checkpoint that are no part of the text tower.
OTHER_PARTS = ("visual.", "text_decoder.", "logit_scale", "logit_bias")
TEXT_SETTINGS = (
    "heads",
    "no_causal_mask",
    "embed_cls",
    "pool_type",
    "eos_id",
    "pad_id",
    "hf_model_name",
    "hf_pooler_type",
)


@dataclass(frozen=True)
class Source:
    """Where a model comes from: open_clip's name for it, its checkpoint, and whether its tag says QuickGELU."""

    name: str
    checkpoint: str
    local: bool
    quick_gelu: bool | None = None


def load_tower(location: str) -> TextTower:
    """The text tower of `NAME/TAG`, `hf-hub:ORGANISATION/MODEL` or a local folder.

    Raises ConfigError for a name open_clip does not list, InputError for a bad folder, NetworkError when a download
    fails.
    """
    open_clip = open_clip_library()
    with quietly():
        source = find_source(location)
        try:
            config = open_clip.get_model_config(source.name)
            overrides = {} if source.quick_gelu is None else {"quick_gelu": source.quick_gelu}
            model = open_clip.create_model(
                source.name, load_weights=False, pretrained_text=False, vision_cfg=dict(TINY_VISION), **overrides
            )
            tokenizer = open_clip.get_tokenizer(source.name)
            _load_weights(model, source.checkpoint)
        except CdkitError:
            raise
        except Exception as error:
            raise loading_error("open_clip", location, source.local, error) from error
    return text_tower(model, tokenizer, {**config, **overrides})


def find_source(location: str) -> Source:
    """Resolve a location, fetching the checkpoint if it is not on this machine."""
    open_clip_library()
    from open_clip.pretrained import download_pretrained, download_pretrained_from_hf, get_pretrained_cfg

    if Path(location).expanduser().is_dir():
        return _local_source(Path(location).expanduser())
    try:
        if location.startswith(HUB_PREFIX):
            return Source(location, download_pretrained_from_hf(location.removeprefix(HUB_PREFIX)), local=False)
        name, tag = _listed(location)
        settings = get_pretrained_cfg(name, tag)
        # The tag knows which activation its weights were trained with; open_clip only warns when the config differs.
        return Source(
            name, download_pretrained(settings), local=False, quick_gelu=bool(settings.get("quick_gelu", False))
        )
    except CdkitError:
        raise
    except Exception as error:
        raise loading_error("open_clip", location, False, error) from error


def _local_source(folder: Path) -> Source:
    from open_clip.factory import _find_checkpoint_in_dir

    settings = read_json(folder / CONFIG_NAME)
    if not isinstance(settings, dict) or not isinstance(settings.get("model_cfg"), dict):
        raise InputError(
            f"{folder / CONFIG_NAME} has no 'model_cfg'.", hint="Save the model in open_clip's local layout."
        )
    checkpoint = _find_checkpoint_in_dir(folder)
    if checkpoint is None:
        raise InputError(f"{folder} holds no weights.", hint="Put open_clip_model.safetensors beside its config.")
    return Source(f"local-dir:{folder}", checkpoint, local=True)


def _listed(location: str) -> tuple[str, str]:
    """The listed name and tag of `NAME/TAG`; raises ConfigError with what is close."""
    import open_clip

    name, _, tag = location.partition("/")
    models = open_clip.list_models()
    if name not in models:
        raise ConfigError(
            f"open_clip:{location} is neither a folder nor a model open_clip lists{_closest(name, models)}",
            hint="Write open_clip:NAME/TAG such as open_clip:ViT-L-14/openai, open_clip:hf-hub:ORG/MODEL or a folder.",
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag.lower().replace("-", "_") not in [listed.lower().replace("-", "_") for listed in tags]:
        what = f"has no weights called {tag!r}{_closest(tag, tags)}" if tag else "needs the name of its weights."
        raise ConfigError(
            f"open_clip's {name} {what}", hint=f"open_clip:{name}/TAG with one of {', '.join(tags) or 'none'}."
        )
    return name, tag


def _closest(word: str, names: list[str]) -> str:
    suggestion = did_you_mean(word, names)
    return suggestion if suggestion.startswith(";") else "."


def _load_weights(model: Any, checkpoint: str) -> None:
    """Load the text tower's part of a checkpoint; every one of its weights must be there."""
    from open_clip import load_checkpoint

    model.visual = nn.Identity()
    if hasattr(model, "text_decoder"):
        model.text_decoder = nn.Identity()
    report = load_checkpoint(model, checkpoint, strict=False)
    # big_vision archives report nothing: they are read array by array and fail by themselves.
    missing = [name for name in getattr(report, "missing_keys", []) if not name.startswith(OTHER_PARTS)]
    unknown = [name for name in getattr(report, "unexpected_keys", []) if not name.startswith(OTHER_PARTS)]
    if missing or unknown:
        raise InputError(
            f"{checkpoint} does not fit its config: {len(missing)} weights missing, {len(unknown)} unknown "
            f"({', '.join([*missing, *unknown][:2])}, …).",
            hint="Config and weights must be of the same model.",
        )


def text_tower(model: Any, tokenizer: Any, config: dict[str, Any]) -> TextTower:
    """The text tower of a built open_clip model whose vision tower may be gone."""
    text = getattr(model, "text", model)
    pooling = getattr(text, "pool_type", None) or getattr(text, "text_pool_type", None)
    end_id = None if pooling == "argmax" else getattr(text, "eos_id", getattr(text, "text_eos_id", None))
    trims = _is_causal(text) and pooling in ("argmax", "eos")
    context_length = int(tokenizer.context_length)

    def padded(tokens: Tensor) -> Tensor:
        embedded: Tensor = model.encode_text(tokens)
        return embedded

    settings = config.get("text_cfg", {})
    return TextTower(
        module=model,
        padded=padded,
        trimmed=_causal_tower(text, end_id) if trims else None,
        tokenizer=_tokenizer(tokenizer, context_length, end_id, trims=trims),
        context_length=context_length,
        pad_id=_pad_id(tokenizer),
        facts={
            "library": "open_clip",
            "quick_gelu": bool(config.get("quick_gelu", False)),
            **{name: settings[name] for name in TEXT_SETTINGS if name in settings},
        },
        skipped=OTHER_PARTS,
    )


def _is_causal(text: Any) -> bool:
    """Whether this is the standard tower with a causal mask, built of the blocks that CausalBlock repeats."""
    from open_clip.transformer import ResidualAttentionBlock

    if getattr(text, "attn_mask", None) is None or getattr(text, "cls_emb", None) is not None:
        return False
    blocks = getattr(text.transformer, "resblocks", [])
    return bool(len(blocks)) and all(
        type(block) is ResidualAttentionBlock and block.attn.in_proj_weight is not None and block.attn.bias_k is None
        for block in blocks
    )


def _causal_tower(text: Any, end_id: int | None) -> CausalTower:
    blocks = [
        CausalBlock(
            heads=block.attn.num_heads,
            norm_1=block.ln_1,
            qkv=linear(block.attn.in_proj_weight, block.attn.in_proj_bias),
            output=block.attn.out_proj,
            norm_2=block.ln_2,
            mlp=two_layers(block.mlp.c_fc, block.mlp.gelu, block.mlp.c_proj),
            scale_1=block.ls_1,
            scale_2=block.ls_2,
        )
        for block in text.transformer.resblocks
    ]
    projection = text.text_projection
    if projection is not None and not isinstance(projection, nn.Linear):
        projection = linear(projection.T)
    return CausalTower(
        token_embedding=text.token_embedding,
        positions=text.positional_embedding,
        blocks=blocks,
        final_norm=text.ln_final,
        projection=projection,
        end_id=end_id,
    )


def _tokenizer(tokenizer: Any, context_length: int, end_id: int | None, *, trims: bool) -> Tokenizer:
    from open_clip import SimpleTokenizer

    if isinstance(tokenizer, SimpleTokenizer) and tokenizer.reduction_fn is None:
        return ClipTokenizer(tokenizer, context_length)
    counted: Counting = (
        ClipTokenizer(tokenizer, context_length).counts
        if isinstance(tokenizer, SimpleTokenizer)
        else counting(tokenizer.tokenizer, tokenizer.clean_fn)
    )
    # What open_clip pads it has cleaned.
    return LibraryTokenizer(tokenizer, counted, (lambda table: pooled_positions(table, end_id)) if trims else None)


def _pad_id(tokenizer: Any) -> int:
    """SimpleTokenizer pads with zeros; the others know."""
    return int(getattr(getattr(tokenizer, "tokenizer", None), "pad_token_id", 0) or 0)


@contextmanager
def quietly() -> Iterator[None]:
    """open_clip warns on the root logger that the model has no weights yet: here they come right after."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
