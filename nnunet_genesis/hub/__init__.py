"""Addresses of published weights → files on this machine, and back."""
