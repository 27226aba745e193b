"""A run: from a command line to a finished folder. This package alone knows Hydra."""
