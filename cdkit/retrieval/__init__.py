"""Retrieval: prompts in, a regularization set out: candidates, a guarded download or images at hand, curation."""
