"""U-Nets of nnU-Net: built from plans, described layer by layer, and what is known about a pre-trained one."""
