"""Train from transferred weights, or from scratch as a control; settings come from plans["genesis"]."""

from nnunet_genesis.finetuning import nnUNetTrainerGenesisFinetune as nnUNetTrainerGenesisFinetune
