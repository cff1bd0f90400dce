"""Readers of public data-set formats, and the tote synthesiser. This package knows files, not models."""
