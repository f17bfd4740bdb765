"""Forecasts the speed, duration and goodput of a training stage on given machines, from closed-form estimates.

Seconds, bytes and FLOPs throughout, unless a name says otherwise. Nothing here imports torch or reads a config.
"""
