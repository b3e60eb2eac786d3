"""Captions: cleaning, pools as they are in the wild, and the import stage that deduplicates and partitions them."""
