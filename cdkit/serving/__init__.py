"""Serving: a caption index that many ask at once, by clip-retrieval's protocol or our own, and pages to look at it."""
