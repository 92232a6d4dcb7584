"""Several processes that train one network.

processes: which process writes, checks that all agree, reading and writing of sharded tensors. deepspeed: reading and
writing for DeepSpeed, whose engine keeps copies of the weights in higher precision.
"""
