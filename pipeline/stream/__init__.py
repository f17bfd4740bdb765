"""Data in motion: sample order, reading, decoding, augmentation, batches and their loaders."""
