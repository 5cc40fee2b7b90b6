"""Weights of one network → weights of another: pure functions on tensors, but for `into_plans`, which writes them."""
