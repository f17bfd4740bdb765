"""How fast, how long and how safely a training stage would run on given machines, from closed forms in plain numbers.

Seconds, bytes and FLOPs throughout, unless a name says otherwise. Nothing here imports torch or reads a pipeline file.
"""
