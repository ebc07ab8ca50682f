"""The run folder, which is the result: written atomically, locked, and read back.

    <results>/runs/<variant>-<config_key>/config.yaml  environment.json  lock  tracking.json
        /seed-0/status.json  metrics.jsonl  checkpoint-*.pt  per_image.npz  samples.png
               /environment.json (only where it differs from the cell's)
        /seed-0/eval/<protocol_key>.json

`scores` says what the files of a seed hold and what its statuses mean, `files` writes and reads
files, `folders` are those of a seed and of a cell, `read` reads runs back and notes their studies.
"""

from glas_bench.record.files import SCHEMA as SCHEMA
from glas_bench.record.files import Partial as Partial
from glas_bench.record.files import created as created
from glas_bench.record.files import digest as digest
from glas_bench.record.files import os_errors as os_errors
from glas_bench.record.files import read_checkpoint as read_checkpoint
from glas_bench.record.files import read_json as read_json
from glas_bench.record.files import write_atomically as write_atomically
from glas_bench.record.files import write_checkpoint as write_checkpoint
from glas_bench.record.files import write_json as write_json
from glas_bench.record.folders import KEPT_CHECKPOINTS as KEPT_CHECKPOINTS
from glas_bench.record.folders import RunFolder as RunFolder
from glas_bench.record.folders import SeedFolder as SeedFolder
from glas_bench.record.read import RunRecord as RunRecord
from glas_bench.record.read import SeedRecord as SeedRecord
from glas_bench.record.read import find_run as find_run
from glas_bench.record.read import find_runs as find_runs
from glas_bench.record.read import load_run as load_run
from glas_bench.record.read import note_of as note_of
from glas_bench.record.read import note_study as note_study
from glas_bench.record.read import read_note as read_note
from glas_bench.record.read import runs_by_study as runs_by_study
from glas_bench.record.scores import FINISHED as FINISHED
from glas_bench.record.scores import STATUSES as STATUSES
from glas_bench.record.scores import Number as Number
from glas_bench.record.scores import Scores as Scores
from glas_bench.record.scores import Status as Status
from glas_bench.record.scores import Summary as Summary
from glas_bench.record.scores import count_statuses as count_statuses
from glas_bench.record.scores import finite as finite
from glas_bench.record.scores import is_number as is_number
from glas_bench.record.scores import join_statuses as join_statuses
from glas_bench.record.scores import nll_prefix as nll_prefix
