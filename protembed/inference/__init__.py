"""Runs over proteins: embeddings, contacts and predictions, computed in batches, put together, written, measured."""
