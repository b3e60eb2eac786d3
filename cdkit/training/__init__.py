"""Training: photos of concepts in, a delta out."""
