"""The ladder as a study: grid, sweep, record, launch, prediction, report, comparison."""
