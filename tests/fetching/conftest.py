"""The servers and contexts of the retrieval tests."""

from tests.retrieval.conftest import certificate, context, server

__all__ = ["certificate", "context", "server"]
