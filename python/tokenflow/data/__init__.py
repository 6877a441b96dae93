"""Pictures to train on and to judge by.

`glyphs` draws its own from the glyphs of an installed emoji font, `backgrounds` is
what lies behind them.
"""
