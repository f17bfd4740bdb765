"""Tasks: what a model is trained to do. The `type` of a stage's `task` section names a package here.

Its `__init__.py` imports no torch and defines `Task`, a `pipeline.tasks.task.BaseTask`: its settings as fields, among
them `type: Literal["NAME"] = "NAME"`, and what it asks of data and model. Plans, checks and the driver of a run use
nothing else. `Task.module` imports `module.py` and returns its `pipeline.tasks.base.TaskModule`: loss, measures and
predictions, in every rank and wherever a model predicts.
"""
