"""Studies run to their last cell by any number of workers.

`plan` says what a study's cells are once the data is known, `store` is the only module that imports
optuna (plan once, claim, beat, tell), `addresses` knows where the database is, `owner` who a worker
is, `worker` runs one cell after another, `crew` several workers side by side, `view` shows them,
`states` reads back where every cell stands, and `sweeping` is what `sweep` does from its arguments
to its exit code. design.md has one file; rooms of one purpose each read better than one of 1,500
lines.

Bare Optuna runs cells twice: on sqlite `enqueue_trial` and `ask` race, first use crashes on table
creation, and `study.optimize` with a heartbeat loses a live trial when the database restarts. So
there is one lock (a file beside sqlite, `pg_advisory_lock` on PostgreSQL) around schema creation,
planning, claiming and telling, and the loop is our own.
"""
