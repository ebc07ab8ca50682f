"""Arithmetic on a device, the only place that knows backends: `linear`, `programs` and `adam`.

It knows tensors and nothing of models.
"""
