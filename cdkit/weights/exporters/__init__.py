"""Deltas as other tools read them, one format per file."""
