"""What can be wrong with weights."""

from __future__ import annotations


class WeightsError(ValueError):
    """Weights that are missing, damaged, unsafe to open or made for another model; the message says the remedy."""
