"""Search embeddings: `python -m fastclip.search`."""
