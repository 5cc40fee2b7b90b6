"""Weights of one network → weights of another: pure functions on tensors, no files."""

from nnunet_genesis.transfer.architecture import Source as Source
from nnunet_genesis.transfer.ledger import Ledger as Ledger
from nnunet_genesis.transfer.matching import match as match
