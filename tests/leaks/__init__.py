"""Which cases a checkpoint was pre-trained on."""
