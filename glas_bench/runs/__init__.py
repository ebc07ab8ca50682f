"""From names to finished seeds: cells, their workers, and what is told, drawn or scored afterwards.

`running` is what `run` does. `cells` trains and scores a cell's seeds: side by side, a `worker`
process each, or `together` as one stack.
"""
