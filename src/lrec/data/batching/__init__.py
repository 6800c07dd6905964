"""A store to tensors: which targets form a step, and which are evaluated at once."""
