"""The figures a reader looks for first: a few tiles at the top of the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cdkit.publishing.scores import heading

if TYPE_CHECKING:
    from cdkit.publishing.report import Page

SCORES = ("text_alignment", "image_alignment", "drift")


def highlights(page: Page) -> list[tuple[str, str, str]]:
    """(name, value, note) of what the run has: images found, steps trained, and the scores of its last set."""
    found = []
    for section in page.regularization[:2]:
        found.append((section.name, f"{section.accepted:,} images", f"of {section.asked:,} asked for"))
    for training in page.training[:2]:
        facts = dict(training.facts)
        if "steps" in facts:
            found.append((training.name, f"{facts['steps']} steps", f"final loss {facts.get('final loss', '–')}"))
    for merge in page.merges[:1]:
        residual = dict(merge.facts).get("constraint residual")
        if residual is not None:
            found.append((merge.name, residual, "constraint residual"))
    if page.scores is not None:
        scored = page.scores.sets[0]
        for metric in SCORES:
            if metric in scored.metrics:
                bounds = page.scores.bounds(scored, metric)
                found.append((heading(metric)[0], page.scores.value(scored, metric), bounds))
    return found
