"""The parts of the yardstick: importance weights, the common recogniser, diagnostics.

`glas_bench.evaluate` puts them together.
"""
