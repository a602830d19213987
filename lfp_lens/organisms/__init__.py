"""Organisms: pairs tuned on feedback whose truth was planted, their sealed keys, and the blind scorecard.

`making.organism` makes one, `grid.organism_grid` many, `scoring.score` measures and compares; `lfp_lens` offers them by name.
"""
