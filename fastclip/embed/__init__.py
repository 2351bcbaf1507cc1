"""Embed a data set: `python -m fastclip.embed`."""
