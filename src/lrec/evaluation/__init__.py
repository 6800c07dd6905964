"""The evaluation of any scorer: metrics, baselines, cases, standard errors."""
