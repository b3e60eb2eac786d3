"""Changes of a finished index: add, remove, compact, each prepared beside it and committed in one step."""
