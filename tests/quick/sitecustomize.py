"""Quick scoring in the processes of a sweep: Python imports this where the folder is on its path.

In a test that starts commands, what `monkeypatch` is in one that calls them.
"""

import sys

if any("sweep" in each for each in sys.orig_argv):
    from budget import QUICK

    from glas_bench import evaluate

    evaluate.BUDGET = QUICK
