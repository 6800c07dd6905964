"""From a store to tensors: which targets form a training step, and which are evaluated together."""
