"""Algorithms as rows: pure functions for each column, and one table of presets over them.

Legend of the tensor names in this package: P prompts, G completions of each prompt (a group), N
sequences, T completion tokens. Masks are boolean, True where there is something. Whatever is masked
may hold NaN, and never reaches a result or a gradient.
"""
