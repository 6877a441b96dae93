"""Training of the tokenizer: a recipe, a teacher, a loop one reads in a sitting.

`config` reads the recipe, `teacher` trains the small encoder that says what the
semantic half should mean, `books` wakes entries nobody uses, `muon` moves the weights,
`run` writes logs and checkpoints, `tokenizer` is the loop.
Source: TokenFlow, arXiv:2412.03069, section 3, without its perceptual and
adversarial losses.
"""
