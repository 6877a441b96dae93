"""One language model for both: words to pictures, and questions about pictures.

`model.TokenFlowUnified` is the generation model that also reads: `config` describes it,
`answering` turns questions into answers. It has the generation model's weights and not
one more.
Source: the paper trains a model for each task, arXiv:2412.03069; one for both is ours.
"""
