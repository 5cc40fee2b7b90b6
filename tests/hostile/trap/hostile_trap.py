"""Named by hostile files: importing it leaves a trace, and nothing else."""

from pathlib import Path

Path("ran").touch()


class Conv3d:
    """Called like a layer."""


class PlainConvUNet:
    """Called like a network."""
