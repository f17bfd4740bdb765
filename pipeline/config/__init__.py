"""The settings of a pipeline: their schema, and how a YAML file becomes one."""
