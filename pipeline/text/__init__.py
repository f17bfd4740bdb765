"""Texts as numbers: tokenizers, as the `tokenizers` library reads and trains them."""
