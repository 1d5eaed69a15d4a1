"""RL Zoo 3's commands with HPO and HybridPPO among its algorithms; the only room that imports rl_zoo3."""

from sb3_hpo.zoo.commands import main

__all__ = ["main"]
