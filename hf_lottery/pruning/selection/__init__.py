"""Exact selection of the lowest scores, for models of any size and over several processes.

select      `select`: remove exactly the `count` lowest scores; `prune`: by rate and scope, a group at a time
sharded     `prune` for weights that FSDP2 has sharded
chunks      reads the scores in chunks of cache size, from several threads
threshold   finds the `count`-th lowest score by counting
ties        decides which of the scores that equal the threshold are removed
allocation  how many weights each tensor keeps, for the scopes erk and uniform
shards      which part of each tensor this process holds
"""
