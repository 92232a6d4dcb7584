"""What a ticket turns into: a PEFT adapter, a smaller one, a sparse delta, a merged model. All load without us."""
