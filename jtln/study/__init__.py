"""Many runs as one study: what is done and what is left, who does it, and what the results are evidence of.

job.py       one run of a study, known by the hash of its settings
ledger.py    which runs are finished, which were cut off
launch.py    jobs through Hydra's launchers, in batches
tuning.py    the same search for the hyper-parameters of every row
study.py     tune, run all, report

What the results are evidence of is :mod:`jtln.reporting`'s.
"""
