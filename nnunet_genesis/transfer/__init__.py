"""Weights of one network → weights of another: pure functions on tensors, no files."""

from nnunet_genesis.transfer.ledger import Ledger as Ledger
from nnunet_genesis.transfer.matching import match as match
from nnunet_genesis.transfer.source import Source as Source
