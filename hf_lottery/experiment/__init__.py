"""Many networks from one recipe.

experiment trains replicates x rounds x controls, by any number of workers; controls says what each control starts
from; instability trains copies of one network under several data orders.
"""
