"""Merging: several concepts' deltas into one, in closed form."""
