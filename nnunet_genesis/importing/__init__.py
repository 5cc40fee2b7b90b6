"""Scans in any format → an nnU-Net raw dataset without labels."""
