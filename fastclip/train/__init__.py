"""The training program: `python -m fastclip.train`."""
