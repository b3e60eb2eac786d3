"""Fetching: the web behind a guard, in a process of its own."""
