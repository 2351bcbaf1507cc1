"""The explorer of a space: `python -m fastclip.explore`."""
