"""Weights: base models as diffusers pipelines."""
