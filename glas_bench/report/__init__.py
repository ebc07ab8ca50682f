"""The report: what the record holds, as pages that a paper's appendix could take.

`plans` says which pages there are and what each should hold; `rows` brings MLflow's runs together
with the plan, one row a seed; `cells` puts seeds together and says which rows may share a table;
`compare` pairs arms image by image, corrects, ranks; `judge` gives the verdicts; `published` knows
the numbers of others; `sheet` is the tidy csv, from which `page` makes the text (of `markdown`, the
referee's part being `refereed`) and `figures` what can be drawn from it; `looks` draws what takes
curves and arrays; `index` lists all pages; `condition` is `--fail-if`; `making` is what the command
does, from its arguments to its exit code.

A page's text is made from its csv and from nothing else, so that the csv holds all of its words and
numbers; figures of curves, steps and samples are made from the record. Nothing on a page hangs on
the clock, the machine or the order of what was read: the same record gives the same bytes.
"""
