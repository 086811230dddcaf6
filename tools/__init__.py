"""Training and evaluation: the programs, and the library behind them.

`kapps.tools.train`, `evaluate` and `demo` are programs; `kapps.tools.training.train` is what the
first one calls.
"""
