"""Deltas: what training makes, how it is stored and applied, and the base models it belongs to."""
