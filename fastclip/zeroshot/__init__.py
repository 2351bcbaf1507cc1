"""Classify pictures by names alone: `python -m fastclip.zeroshot`."""
