"""The five tasks, where recommenders are weakest, by model size: `docs/tasks.md` defines them."""
