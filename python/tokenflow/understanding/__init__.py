"""Pictures and words in, words out: a language model that reads image tokens.

`model.TokenFlowForUnderstanding` puts the parts together; `projector` brings features
to the language model's width, `prompts` holds the templates of conversations,
`processing` makes model inputs of pictures and words, `answering` speaks with people.
Source: TokenFlow, arXiv:2412.03069, section 3.3; LLaVA-1.5, arXiv:2310.03744.
"""
