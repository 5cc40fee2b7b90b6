"""Checkpoints of every known kind → weights, architecture and facts in one form: no files, nothing executed."""

from nnunet_genesis.sources.recognition import recognise as recognise
from nnunet_genesis.sources.source import Source as Source
