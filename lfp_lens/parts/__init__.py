"""What the stages are built from: models, activations, SAEs, rewards, lexicons, words and texts (torch starts
here).

Each part is a Protocol with built-ins and, where users plug in their own, a registry. Parts know nothing of
verbs.
"""
