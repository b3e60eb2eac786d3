"""Deltas as other tools store them: one file per format, its reader and its writer; nothing in a file is executed."""
