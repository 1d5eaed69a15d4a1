"""Models as plain data: a safetensors file with a JSON description in its header, and no pickle anywhere (docs/deploy.md)."""

from sb3_hpo.safe_files.models import load_normalizer, load_safe, save_safe

__all__ = ["load_normalizer", "load_safe", "save_safe"]
