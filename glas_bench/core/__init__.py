"""The training core: randomness by purpose, time, one seed's optimisation, and stacks of seeds.

`train` is a seed on its own, `stacked` all seeds of a cell in one program; both give the same
numbers, and `rollout` is the one loop over a model's steps.
"""
