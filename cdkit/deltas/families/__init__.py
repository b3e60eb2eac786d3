"""Families of text-to-image models: one file each."""
