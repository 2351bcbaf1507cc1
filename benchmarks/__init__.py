"""Measurements of fastclip: ``python -m benchmarks`` and ``pytest benchmarks/`` read the same cases."""
