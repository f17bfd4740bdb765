"""Checkpoints: committed by a manifest, or absent."""
