"""Several processes that train one network.

processes says who writes and what all must agree on, and reads and writes tensors that are sharded; deepspeed does so
for DeepSpeed, whose engine keeps copies of the weights in higher precision.
"""
