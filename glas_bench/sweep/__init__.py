"""Studies run to their last cell by any number of workers.

`plan` is what a study's cells are once the data is known, `trial` one row of the queue, `queue`
what a worker asks of it, `database` where the rows are, `search` what draws values for axes.
`worker` runs one trial after another, `workers` are several side by side; `status` is how far every
cell is, and `view` shows it. `storage` knows the database's address, `worker_id` which process runs
a trial.

Bare Optuna runs cells twice: on sqlite `enqueue_trial` and `ask` race, first use crashes on table
creation, and `study.optimize` with a heartbeat loses a live trial when the database restarts. So
one lock is held around schema creation, planning, claiming and ending, and the loop is our own.
"""
