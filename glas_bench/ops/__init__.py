"""Arithmetic on a device: products, elementwise chains and Adam, each by whoever makes it fastest.

Knows tensors and nothing of models.
"""
