"""Timings one can trust: each op beside everything people could use instead.

`ops/<op>.py` says what is computed, for which cases, and by which methods; the files
are found by looking. `harness` runs every method in a process of its own (`worker`), in
alternating rounds, drops samples taken while the machine did something else (`load`),
and judges every answer against float64 before timing it. `table` prints. The command
`tokenflow bench` and the pytest files in the repository's `bench/` are two front ends
of this. The protocol is told in bench/README.md.
"""
