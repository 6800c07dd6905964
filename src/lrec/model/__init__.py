"""The network in plain torch: config, transformer, blocks, inputs, item table, losses, cost, sharding."""
