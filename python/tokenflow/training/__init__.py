"""Training: one loop for every task, and the tasks.

`config` reads recipes, `loop` trains what a task describes, `state` keeps checkpoints,
`world` and `parallel` are for several processes, `optimizers`, `average` and `log` are
what they say. `tokenizer` is the tokenizer's task, on `pictures`, against `losses`
(with `perceptual` and `discriminator`), its books kept in use by `codebook`;
`contrastive` trains a teacher for those who have none.
Source: TokenFlow, arXiv:2412.03069, section 3.
"""
