"""Sets, deltas and caption indexes for the Hugging Face Hub: what of them may be passed on, and how it gets there."""
