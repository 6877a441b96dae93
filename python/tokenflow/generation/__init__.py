"""Words to pictures: a language model that draws a picture scale by scale.

`model.TokenFlowForGeneration` puts the parts together; `config` describes it, `llama`
is the language model, `inputs` what it reads and sees, `sampling` how its logits become
tokens, `prompts` how words become its first positions, `drawing` the way from prompts
to tokens, with everything kept that need not be computed twice.
Source: TokenFlow, arXiv:2412.03069, section 3.4; the published code where it differs.
"""
