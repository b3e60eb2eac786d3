"""Pictures: the one way to list, open, decode, hash and lay them out, and to read what they are captioned."""
