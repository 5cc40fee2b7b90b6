"""One file per kind of checkpoint: its names and plans → those of nnU-Net v2."""
