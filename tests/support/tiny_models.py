"""Tiny CLIPs with random weights, saved in the layouts that real ones have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VISION = {"layers": 1, "width": 64, "patch_size": 16, "image_size": 16}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2}


def open_clip_folder(folder: Path, *, seed: int = 0, embed_dim: int = 32, **text: Any) -> Path:
    """An open_clip model in its local layout; `text` overrides its text_cfg (pool_type, no_causal_mask, …)."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    config = {
        "embed_dim": embed_dim,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, **text},
        "custom_text": bool(text),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        _spread_out(model)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def clip_config(*, end_id: int = 49407, vocabulary: int = 49408) -> Any:
    """A CLIPConfig of tiny towers whose projections differ in width from what their parts would default to."""
    from transformers import CLIPConfig

    shared = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    return CLIPConfig(
        text_config={
            **shared,
            "vocab_size": vocabulary,
            "max_position_embeddings": 77,
            "eos_token_id": end_id,
            "bos_token_id": vocabulary - 2,
            "pad_token_id": vocabulary - 1,
        },
        vision_config={**shared, "image_size": 16, "patch_size": 8},
        projection_dim=48,
    )


def clip_folder(folder: Path, *, seed: int = 0, end_id: int = 49407) -> Path:
    """A transformers CLIPModel with CLIP's full vocabulary; end_id 2 is what old configs say."""
    import torch
    from transformers import CLIPModel

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(clip_config(end_id=end_id)).eval()
        _spread_out(model)
    model.save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def clip_text_folder(folder: Path, *, seed: int = 0) -> Path:
    """A transformers CLIPTextModelWithProjection with a vocabulary of its own: letters and a few merges."""
    import torch
    from transformers import CLIPTextModelWithProjection

    tokenizer = letter_tokenizer()
    size = len(tokenizer.get_vocab())
    config = clip_config(end_id=tokenizer.eos_token_id, vocabulary=size).text_config
    config.projection_dim = 48
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPTextModelWithProjection(config).eval()
        _spread_out(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def siglip_folder(folder: Path, *, seed: int = 0) -> Path:
    """A transformers SiglipModel: attention both ways, pooled at the last position."""
    import torch
    from transformers import SiglipConfig, SiglipModel

    tokenizer = letter_tokenizer()
    shared = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = {
        **shared,
        "vocab_size": len(tokenizer.get_vocab()),
        "max_position_embeddings": 32,
        "projection_size": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SiglipModel(
            SiglipConfig(text_config=text, vision_config={**shared, "image_size": 16, "patch_size": 8})
        )
        _spread_out(model)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def clip_tokenizer() -> Any:
    """The transformers CLIPTokenizer with the vocabulary that ships with open_clip."""
    from cdkit.embedded.tokenizer import load_tokenizer

    return load_tokenizer()


def letter_tokenizer() -> Any:
    """A CLIPTokenizer of single bytes: every letter of a word is a token."""
    from transformers import CLIPTokenizer

    from cdkit.embedded.tokenizer import END_TOKEN, START_TOKEN, byte_letters

    letters = byte_letters()
    entries = [*letters, *(f"{letter}</w>" for letter in letters), START_TOKEN, END_TOKEN]
    return CLIPTokenizer(vocab={entry: index for index, entry in enumerate(entries)}, merges=[], model_max_length=77)


def _spread_out(model: Any) -> None:
    """Make random towers depend on their words: fresh ones give nearly the same embedding for every caption."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "token_embedding" in name or "positional_embedding" in name or "position_embedding" in name:
                parameter.normal_(std=0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
