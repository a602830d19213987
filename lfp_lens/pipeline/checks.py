"""What is checked before the first verb, though a late one needs it."""

from pathlib import Path

from lfp_lens.config import RunConfig


def check_names(config: RunConfig, wanted: tuple[str, ...], *, is_explained: bool = False) -> None:
    """Refuse what a late verb would refuse, an unknown reward, lexicon or site, a labeller or judge that cannot do, or a chat
    model without a key, before hours of work. Labels that are finished need no key.
    """
    from lfp_lens.parts.labellers import SPENDING, Setting
    from lfp_lens.parts.labellers.opinions import check_keys, make_labellers
    from lfp_lens.parts.lexicons import load_lexicon
    from lfp_lens.parts.rewards import make_reward
    from lfp_lens.parts.sites import layer_of

    if "finetune" in wanted and config.tuned is None and config.finetune.preferences is None:
        make_reward(config.finetune.reward)
    if "ablate" in wanted and config.ablate.reward is not None:
        make_reward(config.ablate.reward)
    stated = load_lexicon(config.lexicon)
    if "explain" in wanted:
        spending = {name: getattr(config.explain, name) for name in SPENDING}
        setting, asked = Setting(stated, config.explain.task, Path("replies"), spending), config.explain
        made = make_labellers(asked.labeller, asked.judge, setting, repeat=asked.repeat)
        if not is_explained:
            check_keys(*made)
    for site in config.sites if isinstance(config.sites, tuple) else ():
        layer_of(site)
