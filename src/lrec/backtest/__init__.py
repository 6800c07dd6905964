"""A rolling backtest: networks trained at several times, each tested on the windows that follow."""
