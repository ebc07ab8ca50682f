"""Studies: a YAML file becomes checked cells and claims.

`file` is the schema and knows the lines of the file, `cell` is what is run, `plan` lays out cells,
and `claims` parses what a study expects of them.
"""

from glas_bench.study.cell import Cell as Cell
from glas_bench.study.cell import by_hand as by_hand
from glas_bench.study.plan import SHIPPED as SHIPPED
from glas_bench.study.plan import Study as Study
from glas_bench.study.plan import find as find
from glas_bench.study.plan import load as load
from glas_bench.study.plan import shipped as shipped
