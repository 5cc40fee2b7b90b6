"""Damaged and malicious copies of every kind of file that is read, and what the commands make of them."""
