"""Studies run to their last cell by any number of workers: plan, queue, worker, view.

`plan` lays out a study's cells on their data. `queue` keeps a `trial` for each, in a `database` at
an address of `storage`; `search` draws values for axes. `worker` claims and runs one trial after
another, alone or side by side, as the process of `worker_id`. `status` joins trials to cells, and
`view` shows them and the workers' events. `commands.sweep.Sweep` is this line.

Bare Optuna runs cells twice: on sqlite `enqueue_trial` and `ask` race, first use crashes on table
creation, and `study.optimize` with a heartbeat loses a live trial when the database restarts. So
one lock is held around schema creation, planning, claiming and ending, and the loop is our own.
"""
