"""The shared space as a library: classify by words, find, interpolate, compose, probe and measure.

Everything takes features, tensors (N, D) of any floating dtype on any device, and compares by cosine.
"""

from fastclip.space.directions import AttributeDirection, attribute_direction, compose, interpolate, parse_sum
from fastclip.space.encoder import Encoder
from fastclip.space.geometry import ModalityGap, alignment, modality_gap, uniformity
from fastclip.space.neighbours import ClusterReport, cluster_report, nearest
from fastclip.space.pictures import ClassFolder, PictureFiles, list_pictures, read_class_names
from fastclip.space.probe import LinearProbe, linear_probe
from fastclip.space.templates import TEMPLATES, read_templates
from fastclip.space.zeroshot import ZeroShotClassifier, ZeroShotResult, zero_shot_classifier

__all__ = [
    "TEMPLATES",
    "AttributeDirection",
    "ClassFolder",
    "ClusterReport",
    "Encoder",
    "LinearProbe",
    "ModalityGap",
    "PictureFiles",
    "ZeroShotClassifier",
    "ZeroShotResult",
    "alignment",
    "attribute_direction",
    "cluster_report",
    "compose",
    "interpolate",
    "linear_probe",
    "list_pictures",
    "modality_gap",
    "nearest",
    "parse_sum",
    "read_class_names",
    "read_templates",
    "uniformity",
    "zero_shot_classifier",
]
