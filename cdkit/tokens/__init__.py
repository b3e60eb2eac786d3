"""Rare modifier tokens: exact counts over captions, the paper's rule, and what a training run starts from."""
