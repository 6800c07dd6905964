"""The figures of any scorer: metrics, baselines, cases, standard errors."""
