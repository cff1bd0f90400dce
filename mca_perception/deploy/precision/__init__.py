"""Graphs in lower precision: int8 with calibrated ranges, float16 and bfloat16, and where they lose accuracy."""
