"""From cells to finished seeds.

`cells` trains and scores the seeds of cells: side by side, each in a process of `seed`, or as one
stack in `stacked_seeds`. `finished` loads a trained seed again, `table` is what `run` prints of
seeds, `pictures` what is drawn of them.
"""
