"""README.md of a regularization set: what it is, and the lines by which `datasets.load_dataset` finds its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cdkit.markdown import markdown_text
from cdkit.retrieval.funnel import Funnel
from cdkit.storage import write_text

_CARD = """\
---
configs:
  - config_name: default
    data_files: images/*.parquet
---
# Regularization set: {prompts}

{accepted:,} images whose captions have a similarity of at least {threshold:g} to the prompts; {asked:,} were asked
for. `images/` holds them with their captions and where each came from (`url`, `sha256` of the original file),
`rejects/` why others are not among them; `contact_sheet.png` shows them, `manifest.json` counts every step. Made by
`cdkit retrieve`.

```python
import datasets  # pip install datasets

images = datasets.load_dataset("path/to/this/folder", split="train")
```

The images belong to whoever made them: that a picture can be fetched grants no right to pass it on.
"""


def write_card(path: Path, prompts: Sequence[str], counted: Funnel) -> None:
    """Write the card."""
    text = _CARD.format(
        prompts=markdown_text(", ".join(prompts)),
        accepted=counted.accepted,
        asked=counted.asked,
        threshold=counted.threshold,
    )
    write_text(path, text)
