"""Many networks from one recipe.

experiment trains replicates x rounds x controls, by any number of workers; controls says what each control starts
from, and dynamic that of the controls whose mask changes in training; instability trains copies of one
network under several data orders.
"""
