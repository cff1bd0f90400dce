"""The thesis' heads and fusion models on pluggable encoders, and the same on the shared backbone. Needs torch."""
