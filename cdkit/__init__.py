"""cdkit: teach a text-to-image model a new concept from a few photos, the Custom Diffusion way."""

from cdkit.core.machine import wait_passively

__version__ = "0.1.0"

# Before anything loads torch or FAISS: their OpenMP reads it once.
wait_passively()
