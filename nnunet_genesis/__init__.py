"""nnunet-genesis: turns unlabeled scans into better nnU-Net models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nnunet_genesis.encoders import Classifier as Classifier
    from nnunet_genesis.encoders import Encoder as Encoder
    from nnunet_genesis.encoders import load_encoder as encoder

__version__ = "0.1.0"
__all__ = ["Classifier", "Encoder", "__version__", "encoder"]

_FRONT = {"encoder": "load_encoder", "Encoder": "Encoder", "Classifier": "Classifier"}
"""Names that are imported when they are first used: torch takes seconds."""


def __getattr__(name: str) -> Any:
    """Import what is offered here from where it is written."""
    if name not in _FRONT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnunet_genesis import encoders

    return getattr(encoders, _FRONT[name])
