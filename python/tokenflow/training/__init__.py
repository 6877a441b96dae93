"""Training: one loop for every task, and the tasks.

`config` reads recipes, `loop` trains what a `task` describes for as long as a `run`
says, `state` keeps checkpoints, `stop` hears when it is asked to end; `world` and
`parallel` are for several processes, `optimizers`, `average` and `log` are what they
say, and `report` shows a run. `tokenizer` is the tokenizer's task, on `pictures`,
against `losses` (with `perceptual` and `discriminator`), its books kept in use by
`codebook`; `teacher` is that of a teacher for those who have none; `ablation` compares
variants.
Source: TokenFlow, arXiv:2412.03069, section 3.
"""
