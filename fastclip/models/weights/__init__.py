"""Weights of models in files: found, read safely, renamed, and fitted to a config."""
