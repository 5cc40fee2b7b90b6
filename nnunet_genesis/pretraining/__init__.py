"""Preprocessed volumes → a pre-trained network, by restoring corrupted patches."""
