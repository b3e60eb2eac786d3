"""The encoders that ship with the package: the towers of its small CLIP, without the library they are written for.

Loading that library takes seconds, and its towers give these very numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdkit.embedded.models import TEXT_CONFIG, VISION_CONFIG, picture_tensors, text_tensors
from cdkit.embedded.tokenizer import CONTEXT, END_ID, END_TOKEN, START_TOKEN, load_tokenizer
from cdkit.embedded.weight_files import default_threshold
from cdkit.encoders.causal_tower import CausalBlock, CausalTower, linear, two_layers
from cdkit.encoders.cpu_products import fast_linear
from cdkit.encoders.text_tower import TextTower
from cdkit.encoders.tokenizing import simple_tokenizer
from cdkit.encoders.transformers import FastClipTokenizer

HEADS = TEXT_CONFIG["num_attention_heads"]


def load_tower() -> tuple[TextTower, float]:
    """The embedded CLIP's text tower and the similarity from which its captions count as alike."""
    tensors = {name: tensor for name, tensor in text_tensors().items() if name.startswith("text_")}
    trimmed = _causal_tower(tensors)
    tower = TextTower(
        module=_holding(tensors),
        padded=trimmed,
        trimmed=trimmed,
        tokenizer=FastClipTokenizer(simple_tokenizer(CONTEXT), load_tokenizer, (START_TOKEN, END_TOKEN), CONTEXT),
        context_length=CONTEXT,
        pad_id=END_ID,
        # As a CLIP of the transformers library, which it is: the same weights are the same encoder.
        facts={"library": "transformers", "kind": "clip", "activation": "quick_gelu", "heads": HEADS, "end": END_ID},
    )
    return tower, default_threshold()


def load_picture_tower() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The picture tower: what holds its weights, and its forward, pixels (n, 3, 32, 32) to embeddings (n, 128)."""
    holder = _holding(picture_tensors())
    return holder, lambda pixels: embed_pictures(dict(holder.named_buffers()), pixels)


def embed_pictures(weights: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """CLIP's vision transformer (Radford et al. 2021, section 2.4), pooled at its class token."""
    tower, heads = "vision_model.", VISION_CONFIG["num_attention_heads"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    def map(x: Tensor, name: str) -> Tensor:
        return fast_linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def split(x: Tensor, name: str) -> Tensor:
        parts: Tensor = map(x, name).unflatten(-1, (heads, -1))
        return parts.transpose(1, 2)

    kernel = weights[f"{tower}embeddings.patch_embedding.weight"]
    patches = F.conv2d(pixels, kernel, stride=VISION_CONFIG["patch_size"])
    first = weights[f"{tower}embeddings.class_embedding"].expand(len(pixels), 1, -1)
    x = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
    x = norm(x + weights[f"{tower}embeddings.position_embedding.weight"], f"{tower}pre_layrnorm")
    for number in range(VISION_CONFIG["num_hidden_layers"]):
        layer = f"{tower}encoder.layers.{number}."
        normed = norm(x, f"{layer}layer_norm1")
        query, key, value = (split(normed, f"{layer}self_attn.{part}_proj") for part in "qkv")
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + map(mixed, f"{layer}self_attn.out_proj")
        inner = quick_gelu(map(norm(x, f"{layer}layer_norm2"), f"{layer}mlp.fc1"))
        x = x + map(inner, f"{layer}mlp.fc2")
    return map(norm(x[:, 0], f"{tower}post_layernorm"), "visual_projection")


def quick_gelu(x: Tensor) -> Tensor:
    """The activation of OpenAI's CLIPs."""
    return x * torch.sigmoid(1.702 * x)


class QuickGelu(nn.Module):
    """The same as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


def _causal_tower(tensors: Mapping[str, Tensor]) -> CausalTower:
    text = "text_model."

    def layer(name: str) -> nn.Linear:
        return linear(tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))

    def norm(name: str) -> nn.LayerNorm:
        layer_norm = nn.LayerNorm(tensors[f"{name}.weight"].shape)
        layer_norm.load_state_dict({part: tensors[f"{name}.{part}"] for part in ("weight", "bias")})
        return layer_norm

    blocks = []
    for number in range(TEXT_CONFIG["num_hidden_layers"]):
        block = f"{text}encoder.layers.{number}"
        maps = [layer(f"{block}.self_attn.{part}_proj") for part in "qkv"]
        blocks.append(
            CausalBlock(
                heads=HEADS,
                norm_1=norm(f"{block}.layer_norm1"),
                qkv=linear(torch.cat([m.weight for m in maps]), torch.cat([m.bias for m in maps])),
                output=layer(f"{block}.self_attn.out_proj"),
                norm_2=norm(f"{block}.layer_norm2"),
                mlp=two_layers(layer(f"{block}.mlp.fc1"), QuickGelu(), layer(f"{block}.mlp.fc2")),
            )
        )
    return CausalTower(
        token_embedding=nn.Embedding.from_pretrained(tensors[f"{text}embeddings.token_embedding.weight"]),
        positions=tensors[f"{text}embeddings.position_embedding.weight"],
        blocks=blocks,
        final_norm=norm(f"{text}final_layer_norm"),
        projection=layer("text_projection"),
        end_id=END_ID,
    )


def _holding(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module whose state has these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        holder = root
        for part in path:
            if not hasattr(holder, part):
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.register_buffer(last, tensor)
    return root
