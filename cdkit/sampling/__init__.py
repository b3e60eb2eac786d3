"""Sampling: prompts and seeds in, images out."""
