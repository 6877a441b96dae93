"""How good the redrawn pictures are, and beside what.

`metrics` holds the numbers, `pictures` what is judged, `reconstruction` puts both
together for a tokenizer and for two baselines that need no model.
"""
