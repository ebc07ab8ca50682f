"""Run folders to MLflow and back.

`entries` says what MLflow shows of a run folder, `mlflow_store` is the only importer of mlflow,
`sync` mirrors and fetches folders, `mirror` syncs from a process beside the training, `address`
says where the store is.
"""
