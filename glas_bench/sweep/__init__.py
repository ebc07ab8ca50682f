"""Studies run to their last cell by any number of workers.

`plan` says what a study's cells are once the data is known. `addresses` knows where the database
is, `owner` who a worker is; `database` opens and locks, `trials` are trials as plain values,
`ledger` is what may happen to one, `search` draws values for axes, `store` is what a worker asks:
they alone import optuna. `worker` runs one cell after another, `workers` several side by side,
`states` says where every cell stands, `view` shows it, and `sweeping` is what `sweep` does from its
arguments to its exit code.

Bare Optuna runs cells twice: on sqlite `enqueue_trial` and `ask` race, first use crashes on table
creation, and `study.optimize` with a heartbeat loses a live trial when the database restarts. So
there is one lock (a file beside sqlite, `pg_advisory_lock` on PostgreSQL) around schema creation,
planning, claiming and telling, and the loop is our own.
"""
