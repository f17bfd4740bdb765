"""The settings of a pipeline: their schema, and how they are loaded from YAML."""
