"""Data streaming: sample order, reading, decoding, augmentation, batches and their loaders."""
