"""cdkit: teach a text-to-image model a new concept from a few photos, the Custom Diffusion way."""

__version__ = "0.1.0"
