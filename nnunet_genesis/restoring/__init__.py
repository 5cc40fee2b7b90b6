"""Pre-trained network and a scan → the scan as the network expects it, and where that differs: an anomaly hint."""
