"""A ticket's folder. Every file of it, and the file of this room that reads or writes it:

* `ticket.json`: facts, and the tables of tensors and files: document (bytes), schema (fields), info (makes the facts).
* `mask.safetensors`: the mask, one bit per weight or compressed: tensors, mask_codec.
* `rewind.safetensors`: the tensors of θ_k that the base model does not have: tensors; in memory: rewind_point.
* `README.md`: the model card: card, card_code, card_merge.
* `model.safetensors` or `adapter_model.safetensors`, and config files, on request: the trained network: model.
* `*.png`, on request: plots for the card: save.

`ticket` has the class Ticket; `read` and `save` handle a whole folder, `hub` a repository of the Hub, `hub_error` what
goes wrong with it; `publishing` leaves out what others must not see; `base_model` finds the tensors that a Hub model
already has; `check` compares a ticket with a model.
"""
