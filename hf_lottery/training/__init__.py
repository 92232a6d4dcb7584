"""Training under a mask, and the search for a ticket. What `trainer.find_ticket()` does, file by file:

* search.py: `Search.find_ticket` runs the rounds. One round: load the round before, prune, rewind, train.
* trainer.py: `LotteryMixin` has these three steps, and `train` starts in one of three ways: fresh, as at the rewind
  point, or from a checkpoint. unsupported.py has refused settings that do not work when the trainer was made.
* masking.py: prune() sets a new mask; in each training the mask is attached as a masked step (masked_step.py, or
  deepspeed.py inside a DeepSpeed engine), which keeps pruned weights at zero or at θ_k.
* rewinding.py: the callback captures θ_k, with optimizer and random numbers, when training reaches step k.
* replay.py: rewind() requests that the next training starts as at step k; it holds the random-number states and the
  last learning rate for that.
* data_order.py: chooses the seeds of a round that has random numbers of its own.
* calibration.py: the batches by which criteria that need data score the weights.
* watch.py: looks in each training whether pruned weights are what they must be, and weights and loss finite.
* other_text.py: measures forgetting, the loss on text that the task does not hold, in round 0 before it trains and in
  every round after.
* checkpoints.py: seals each checkpoint, and chooses a whole one to continue from (checkpointing.py has Trainer's
  methods for that); discard.py makes unfinished what a damaged file belongs to; stopping.py ends training on a signal.
* search_file.py and result_line.py: which search a folder holds, and what is said of a network that was trained.
* dynamic_sparsity.py: a mask that changes within a training (mask_schedule.py: when; own_steps.py: Adam's steps of a
  weight that comes in late), for the controls set and rigl.
* network_folder.py: mask, trained weights and line of results of each finished round, in a folder of its own.
"""
