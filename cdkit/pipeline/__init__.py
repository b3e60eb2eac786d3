"""Pipelines: YAML files of stages, planned from fingerprints and run only where something is missing."""
