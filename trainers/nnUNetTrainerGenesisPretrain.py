"""Pre-train on unlabeled scans: restore corrupted patches; settings come from plans["genesis"]."""

from nnunet_genesis.pretraining.trainer import nnUNetTrainerGenesisPretrain as nnUNetTrainerGenesisPretrain
