"""The caption index: text embeddings, the FAISS index over them, and search."""
