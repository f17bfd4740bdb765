"""Tasks: what a model is trained to do. One package per task, found by the `type` of a stage's `task` section.

Each package defines its settings and its requirements for data and model (`__init__.py`, without torch), and its loss,
measures and predictions (`module.py`).
"""
