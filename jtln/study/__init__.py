"""Many runs as one study: what is done and what is left, who does it, and what the results are evidence of.

job.py       one run of a study, known by the hash of its settings
ledger.py    which runs are finished, which were cut off
workers.py   processes that run jobs, one a core or a GPU
schedule.py  jobs onto workers until none is left
tuning.py    the same search for the hyper-parameters of every row
study.py     tune, run all, report

What the results are evidence of is :mod:`jtln.reporting`'s.
"""
