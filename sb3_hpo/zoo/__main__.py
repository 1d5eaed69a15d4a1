"""``python -m sb3_hpo.zoo``."""

from sb3_hpo.zoo.commands import main

main()
