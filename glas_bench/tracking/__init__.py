"""Run folders into MLflow and back.

`entries` says what of a run folder is told, `store` is the only module that imports mlflow, `sync`
brings folders up to date there, `mirror` does so from a process beside the training, `addresses`
knows where the store is.
"""
