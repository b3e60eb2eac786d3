"""Evaluation: scores of samples, and analyses of what training changed."""
