"""From prompts to images: candidates out of the caption index, a guarded download, and other sources of images."""
