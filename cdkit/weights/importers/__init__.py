"""Other tools' files as deltas, one format per file; nothing in them is executed."""
