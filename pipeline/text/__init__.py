"""Tokenizers, read and trained with the `tokenizers` library."""
