"""What the finished networks of a run show.

results reads results.jsonl, metric tells which value counts, written_recipe reads which networks were planned.
evaluations and curves read the networks' logs, overlap compares their masks, linear_path measures instability.
statistics and verdict judge; headline, table and formatting write it down as text; terminal prints the table.
"""
