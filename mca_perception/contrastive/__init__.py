"""Contrastive losses that several tasks share. This package knows embeddings, not models."""
