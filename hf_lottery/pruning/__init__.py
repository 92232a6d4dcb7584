"""Pruning: from a network and its mask to the next mask. One pruning goes through these files:

targets     before training: which weights may be pruned, and the pruning rate of each
reparametrised  refuses weights that a module computes from others, with what to do
coverage    how much of what is trained the mask is over, and what is left out
zeros       the zeros of a model that is sparse already, and the mask that they are
context     `PruningContext`: what a pruning may use. The trainer builds it
step        `next_mask`: the criterion scores the weights, the pattern removes the lowest scores; `check_network` and
            `rehearse` refuse, before training, what it could not score
criteria    `CRITERIA`: name -> function and what it needs; gradients (snip, grasp), wanda, synflow and lora hold the
            longer functions, custom calls a function of the user; unpadded and labels say what of a batch counts
patterns    `PATTERNS`: name -> function; groups (n:m and neurons), heads, lora (ranks) and embeddings (rows) hold the
            functions for whole groups
axes        which dimension of a layer's weight holds its outputs; patterns and wanda see (outputs, inputs, …)
places      which weights are one group. Found by gated (neurons of gated MLPs), recurrent (of LSTMs and their kind)
            and attention (heads); units exchanges groups, for the control random_mask
untrained   refuses a mask of a LoRA that its start would decide
selection/  removes exactly the number of lowest scores that rate and scope ask for
"""
