"""A first pipeline from a few answers: what is at hand is looked at, and a commented YAML is written of it."""
