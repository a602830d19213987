"""The nine verbs: `lfp_lens/stages/VERB.py` holds the function `VERB`; stages never import one another."""
