default: test lint types

quickstart:
    cdkit run pipelines/quickstart.yaml

test:
    pytest

lint:
    ruff check . && ruff format --check .

types:
    mypy cdkit

bench:
    python -m tests.bench

docs:
    python -m tests.docs.reference && zensical build --strict
