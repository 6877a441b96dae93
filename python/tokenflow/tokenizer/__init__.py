"""Pixels to tokens and back: two encoders, one pair of books, two decoders.

`model.TokenFlowTokenizer` puts the parts together; `semantic` and `pixel` hold the
networks, `quantizer` the residual pyramid, `scales` its schedule, `processing` what
happens to a picture before and after.
Source: TokenFlow, arXiv:2412.03069, section 3.
"""
