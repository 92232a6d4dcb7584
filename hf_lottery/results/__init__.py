"""What the finished networks of a run show.

results reads results.jsonl, metric tells which value counts, written_recipe reads which networks were planned.
diverged says which networks became nan or infinite, and what is left out for that.
forgetting names what a line says of the loss on text that the task does not hold.
evaluations and curves read the networks' logs, overlap compares their masks, linear_path measures instability.
statistics and verdict judge; headline, table and formatting write it down as text; terminal prints the table.
"""
