"""Many networks from one recipe.

experiment trains replicates x rounds x controls, by any number of workers; controls says what each control starts
from, redraw draws new weights for them, chains are the controls with a search of their own, and dynamic those whose
mask changes in training; instability trains copies of one network under several data orders.
"""
