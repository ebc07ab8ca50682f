"""The training core: streams of noise, the loop over time, the optimisation loop, and stacks of it.

`rollout` is the one loop over a model's steps. `train` optimises one seed, `stacked` all seeds of a
cell in one program, at the same numbers to rounding. Stacks are written for GPUs; they are tested
on CPUs and have not run on a GPU yet.
"""
