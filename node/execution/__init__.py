"""The transitions of a run: beginning, phases, effects, recovery. Plain functions over the stores.

Tasks and threads belong in `runtime`.
"""
