"""Synthesised totes and picks in ARMBench's file layouts."""
