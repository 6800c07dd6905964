"""The ladder as a study: plan by hours, grid, tuning, record, launch, prediction, report, comparison."""
