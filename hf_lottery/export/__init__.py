"""What a ticket or a trained network is exported to: a PEFT adapter, a smaller one, a sparse delta, a merged model.

All of them load without hf_lottery.
"""
