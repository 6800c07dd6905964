"""Everything that knows Lightning's Trainer: module, optimizers, callbacks, strategies, LightningCLI."""
