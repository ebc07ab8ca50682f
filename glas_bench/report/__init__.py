"""The report: records of runs as pages that a paper's appendix could take.

`plans` says which pages there are and which cells each should have; `records` turns records of runs
into rows, one a seed; `table` groups rows into cells and cells into tables; `compare` pairs cells
image by image and ranks them; `verdicts` judges claims; `csv_file` writes and reads the rows;
`page` makes the markdown with the tables of `columns`, and `html_page` one file of that; `latex`
and `results_json` write the tables for papers and programs. `figures` draws what the csv has the
data for, `record_figures` curves and samples. `fail_if` is the option of that name.

The text of a page is made from its csv and nothing else; curves, steps and samples are drawn from
the record. Nothing on a page depends on the clock, the machine or the order in which runs were
read: the same records give the same bytes.
"""
