"""What a configuration takes from a folder of the user's own images: its name, and the kind of its images."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf


def folder_name(root: Path | str) -> str:
    """The last part of a path: "parts" of "./parts/"; of "." and "~" that of the folder that they stand for."""
    path = Path(root).expanduser()
    path = path.resolve() if path.name in ("", "..") else path
    return path.name or "folder"


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)
