"""The types of stages: one module or package for each, found by the `type` of a stage's section.

Each declares its settings, the models and data that it reads, its checks and its inputs without importing torch or Ray,
which a plan does without; what runs it is imported when its turn comes.
"""
