"""Checkpoints from which a killed run goes on, bit for bit, as if it had never been killed (docs/checkpoints.md)."""

from sb3_hpo.checkpoint.files import (
    DamagedCheckpointError,
    ExactCheckpointCallback,
    newest_checkpoint,
    read_checkpoint,
    write_checkpoint,
)

__all__ = ["DamagedCheckpointError", "ExactCheckpointCallback", "newest_checkpoint", "read_checkpoint", "write_checkpoint"]
