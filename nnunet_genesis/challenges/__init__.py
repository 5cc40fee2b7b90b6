"""A challenge's download → a raw dataset of nnU-Net; nnU-Net's predictions → the challenge's archive."""
