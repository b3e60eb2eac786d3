"""The servers of the picture tests."""

from tests.retrieval.conftest import server

__all__ = ["server"]
