"""The encoder that ships with the package: the text tower of its small CLIP."""

from __future__ import annotations

from cdkit.encoders.text_tower import TextTower


def load_tower() -> tuple[TextTower, float]:
    """The embedded CLIP's text tower and the similarity from which its captions count as alike."""
    from cdkit import embedded
    from cdkit.encoders.transformers import clip_tower

    clip = embedded.load_clip()
    return clip_tower(clip.model, clip.tokenizer), clip.threshold
