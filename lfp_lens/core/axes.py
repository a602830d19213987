"""The axis letters. A tensor's name ends in its axes once three or more meet: `acts_BSD`.

| letter | axis |
|---|---|
| B | batch: texts in one forward pass |
| S | sequence position |
| D | width of a site (d_model for `hook_mlp_out`) |
| F | features of one SAE |
| V | vocabulary |
| L | layers |
| N | tokens, flattened over texts and positions, padding removed |
| W | words |
| T | triples |
"""
