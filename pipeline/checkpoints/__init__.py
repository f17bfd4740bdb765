"""Checkpoints: committed by their manifest, or nonexistent."""
