"""The published results: one command each, which trains, tests and writes its section of a page in docs/results.

What experiments share: `cells` (results on disk), `intervals` (intervals and tests over seeds and items), `pages`
(sections, written and read back) and `results` (RESULTS.md, one page). The experiments themselves: `lab`, `real`.
"""
