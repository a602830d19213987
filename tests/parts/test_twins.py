"""A noise twin moved as far as the tuned model, in no direction that tuning chose; a random model kept nothing but its scale."""

import copy

import pytest
import torch

from lfp_lens.parts.pair import weights_fingerprint
from lfp_lens.parts.twins import noise_twin, random_model
from tests.tiny import ARCHITECTURES, perturbed, tiny_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_tensor_moves_as_far_as_tuning_moved_it(architecture: str) -> None:
    base = tiny_model(architecture)
    tuned = perturbed(base, 0.03)
    with torch.no_grad():
        dict(tuned.named_parameters())[next(iter(dict(tuned.named_parameters())))].mul_(1.5)
    twin = noise_twin(base, tuned, seed=0)
    moved, noised = dict(tuned.named_parameters()), dict(twin.named_parameters())
    for name, weight in base.named_parameters():
        wanted = float((moved[name] - weight).detach().norm())
        assert wanted > 0
        # The sum of a weight of order 1 and a small step rounds at 1e-7 of the weight.
        assert float((noised[name] - weight).detach().norm()) == pytest.approx(wanted, rel=1e-4), name


def test_the_direction_has_nothing_to_do_with_tuning() -> None:
    base = tiny_model()
    tuned = perturbed(base, 0.03)
    flat = lambda model: torch.cat([weight.detach().flatten() for weight in model.parameters()])  # noqa: E731
    change, noise = flat(tuned) - flat(base), flat(noise_twin(base, tuned, seed=0)) - flat(base)
    # Two random directions among n weights have a cosine of standard deviation n ** -0.5.
    assert abs(float(torch.cosine_similarity(change, noise, dim=0))) < 4 * len(change) ** -0.5


def test_what_tuning_left_alone_stays() -> None:
    base = tiny_model()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        tuned.gpt_neox.layers[1].mlp.dense_h_to_4h.weight += 0.1
    twin = noise_twin(base, tuned, seed=0)
    changed = [
        name for name, weight in twin.named_parameters() if not torch.equal(weight, dict(base.named_parameters())[name])
    ]
    assert changed == ["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    assert weights_fingerprint(noise_twin(base, base, seed=0)) == weights_fingerprint(base)


def test_base_and_tuned_are_not_touched_and_the_seed_decides() -> None:
    base = tiny_model()
    tuned = perturbed(base)
    before = [weights_fingerprint(model) for model in (base, tuned)]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    twins = [weights_fingerprint(noise_twin(base, tuned, seed=seed)) for seed in (0, 0, 1)]
    assert [weights_fingerprint(model) for model in (base, tuned)] == before
    assert twins[0] == twins[1] != twins[2]
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_random_model_keeps_the_mean_and_spread_of_every_tensor_and_nothing_else(architecture: str) -> None:
    base = tiny_model(architecture, width=32)
    with torch.no_grad():  # a mean and a spread that no initialiser has
        for weight in base.parameters():
            weight.mul_(1.5).add_(0.3)
    twin = dict(random_model(base, seed=0).named_parameters())
    for name, weight in base.named_parameters():
        one, other = weight.detach().flatten().double(), twin[name].detach().flatten().double()
        if weight.dim() < 2:
            assert torch.equal(one.sort().values, other.sort().values), name
            continue
        # The mean of n draws has standard error spread / sqrt(n), their spread 1 / sqrt(2n) of itself; five of each.
        error = 5 * len(one) ** -0.5
        assert abs(float(other.mean() - one.mean())) < error * float(one.std()), name
        assert float(other.std()) == pytest.approx(float(one.std()), rel=error), name
        correlation = torch.corrcoef(torch.stack([one, other]))[0, 1]
        assert abs(float(correlation)) < error, name


def test_a_random_model_ties_what_the_base_ties_and_runs() -> None:
    base = tiny_model("gpt2")
    twin = random_model(base, seed=0)
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight
    assert twin.get_input_embeddings().weight is not base.get_input_embeddings().weight
    with torch.no_grad():
        assert torch.isfinite(twin(torch.tensor([[0, 5, 9]])).logits).all()


def test_a_random_model_leaves_the_base_alone_and_follows_its_seed() -> None:
    base = tiny_model()
    before = weights_fingerprint(base)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    twins = [weights_fingerprint(random_model(base, seed=seed)) for seed in (0, 0, 1)]
    assert weights_fingerprint(base) == before
    assert twins[0] == twins[1] != twins[2]
    assert torch.equal(state, torch.get_rng_state())
