"""Small real expert groups, trained on the spot, to see what merging does to abilities.

Tasks as programs, a base whose answers follow two conventions, experts by GRPO and by
supervised training, all on the decoder of models/. Needs the extra `lab`.
"""
