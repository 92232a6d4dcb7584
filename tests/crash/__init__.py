"""The machinery that finds lost work: searches that are killed, whose disk fails, or whose files are damaged.

`python -m tests.crash kills | faults | tears` (`make crash` runs all three); see __main__.py for how to repeat one.

* disk.py sees every operation that a process does on the files below a folder, native.py those of native code;
* plans.py kills the process at one of them, lets it fail, or cuts the power (power.py);
* processes.py forks a process that has everything imported, so that a kill costs a second and not ten;
* configurations.py and recipe_runs.py hold the searches, compare.py what must be the same after a kill;
* kills.py, faults.py and tears.py put these together.
"""
