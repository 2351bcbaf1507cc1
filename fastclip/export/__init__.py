"""Export to ONNX: `python -m fastclip.export`."""
