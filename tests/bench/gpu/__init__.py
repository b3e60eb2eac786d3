"""Measures one GPU with nothing but the package's source: `python -m tests.bench.gpu`."""
