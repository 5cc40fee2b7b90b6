"""nnunet-genesis: turns unlabeled scans into better nnU-Net models."""

__version__ = "0.1.0"
