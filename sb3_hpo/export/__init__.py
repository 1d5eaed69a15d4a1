"""A trained policy as one graph, from the raw observation to the decision, for programs without Python (docs/deploy.md)."""

from sb3_hpo.export.decision import DecisionModule
from sb3_hpo.export.files import Agreement, Decide, agreement, export_onnx, export_torch, load_onnx, load_torch

__all__ = [
    "Agreement",
    "Decide",
    "DecisionModule",
    "agreement",
    "export_onnx",
    "export_torch",
    "load_onnx",
    "load_torch",
]
