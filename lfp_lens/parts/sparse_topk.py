"""A TopK SAE's training step with one dense matrix product instead of six; the gradients are the same.

Only k of F features are on, and TopK SAEs have no penalty on the others, so that decoding and all gradients are sums over
N k pairs of a token and a feature. PyTorch's `embedding_bag`, a weighted sum of chosen rows, adds them up: over a token's
features to decode, over a feature's tokens for the gradients of its encoder and decoder. Choosing the k stays dense.
The auxiliary loss that revives dead features is computed on the dead ones alone, which is what it reads.
Imported lazily by `parts.saes`, because SAELens takes seconds to import.
"""

from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.saes.topk_sae import act_times_W_dec, calculate_topk_aux_acts
from torch.nn.functional import embedding_bag

from lfp_lens.parts.lean_saes import LeanTopKTrainingSAE, is_plain


class SparseTopKLoss(torch.autograd.Function):
    """Mean over tokens of ||sum over the k chosen of ReLU(pre_j) W_dec_j + b_dec - x||^2.

    pre = (x - c b_dec) W_enc + b_enc, c = 1 where the input is centred; chosen are the largest pre_j w_j, with
    w_j = ||W_dec_j|| or 1. The choice has no gradient, and w cancels from the reconstruction.
    """

    @staticmethod
    def forward(
        ctx: Any, x_ND: torch.Tensor, W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor, b_dec: torch.Tensor,
        k: int, centred: bool, weighted: bool,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """Give the loss, the reconstruction, the weighted pre-activations [N, F], and the chosen ones with their indices."""
        in_ND = x_ND - b_dec if centred else x_ND
        pre_NF = torch.addmm(b_enc, in_ND, W_enc)
        weight_F = W_dec.norm(dim=-1) if weighted else torch.ones_like(b_enc)
        pre_NF *= weight_F
        chosen_NK, index_NK = pre_NF.topk(k, dim=-1, sorted=False)
        values_NK = chosen_NK.relu() / weight_F[index_NK]
        error_ND = embedding_bag(index_NK, W_dec, per_sample_weights=values_NK, mode="sum").add_(b_dec)
        out_ND = error_ND.clone()
        error_ND -= x_ND
        ctx.save_for_backward(in_ND, W_enc, W_dec, index_NK, values_NK, error_ND)
        ctx.centred = centred
        ctx.mark_non_differentiable(out_ND, pre_NF, chosen_NK, index_NK)
        return error_ND.square().sum() / len(x_ND), out_ND, pre_NF, chosen_NK, index_NK

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, *unused: Any) -> tuple[Any, ...]:
        """Give the gradients of the four weights; the input has none."""
        in_ND, W_enc, W_dec, index_NK, values_NK, error_ND = ctx.saved_tensors
        at_out_ND = error_ND * (2 / len(error_ND) * scale)
        tokens, order, starts = _by_feature(index_NK, len(W_dec))
        to_dec = embedding_bag(tokens, at_out_ND, starts, per_sample_weights=values_NK.flatten()[order], mode="sum")
        with torch.enable_grad():
            free_NK = values_NK.detach().requires_grad_()
            made_ND = embedding_bag(index_NK, W_dec.detach(), per_sample_weights=free_NK, mode="sum")
            (at_values_NK,) = torch.autograd.grad(made_ND, free_NK, at_out_ND)
        at_pre = (at_values_NK * (values_NK > 0)).flatten()
        to_enc = embedding_bag(tokens, in_ND, starts, per_sample_weights=at_pre[order], mode="sum").T.contiguous()
        to_b_enc = torch.zeros(len(W_dec), dtype=at_pre.dtype, device=at_pre.device)
        to_b_enc.index_add_(0, index_NK.flatten(), at_pre)
        to_b_dec = at_out_ND.sum(0)
        if ctx.centred:
            to_b_dec -= W_enc @ to_b_enc
        return None, to_enc, to_b_enc, to_dec, to_b_dec, None, None, None


def _by_feature(index_NK: torch.Tensor, n_features: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Give the tokens of feature 0, of feature 1, ..., the order that sorts the pairs so, and where each feature begins."""
    features, order = torch.sort(index_NK.flatten(), stable=True)
    starts = torch.searchsorted(features, torch.arange(n_features, device=features.device))
    return order // index_NK.shape[1], order, starts


class SparseTopKTrainingSAE(LeanTopKTrainingSAE):
    """SAELens' TopK SAE in one dense product, on a CPU in full precision; elsewhere in five."""

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Give SAELens' step output."""
        x_ND = step_input.sae_in
        if x_ND.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not is_plain(self):
            return super().training_forward_pass(step_input)
        mse, out_ND, pre_NF, chosen_NK, index_NK = SparseTopKLoss.apply(
            x_ND, self.W_enc, self.b_enc, self.W_dec, self.b_dec, self.cfg.k, self.cfg.apply_b_dec_to_input,
            self.cfg.rescale_acts_by_decoder_norm,
        )  # fmt: skip
        features_NF = torch.zeros_like(pre_NF).scatter_(-1, index_NK, chosen_NK.relu())
        revival = self._revival_loss(x_ND, out_ND, step_input.dead_neuron_mask)
        losses = {"mse_loss": mse, "auxiliary_reconstruction_loss": revival}
        return TrainStepOutput(x_ND, out_ND, features_NF, pre_NF, mse + revival, losses)

    def _revival_loss(self, x_ND: torch.Tensor, out_ND: torch.Tensor, dead_F: torch.Tensor | None) -> torch.Tensor:
        """Give SAELens' auxiliary loss, computed on the dead features alone: they should tell what the living leave over."""
        if dead_F is None or not bool(dead_F.any()):
            return out_ND.new_tensor(0.0)
        dead = dead_F.nonzero()[:, 0]
        most = x_ND.shape[-1] // 2
        rows, in_ND = self.W_dec[dead], x_ND - self.b_dec * self.cfg.apply_b_dec_to_input
        pre = in_ND @ self.W_enc[:, dead] + self.b_enc[dead]
        if self.cfg.rescale_acts_by_decoder_norm:
            pre = pre * rows.norm(dim=-1)
        acts = calculate_topk_aux_acts(min(most, len(dead)), pre, torch.ones_like(dead, dtype=torch.bool))
        made_ND = act_times_W_dec(acts, rows, self.cfg.rescale_acts_by_decoder_norm)
        error = (made_ND - (x_ND - out_ND)).square().sum(-1).mean()
        return self.cfg.aux_loss_coefficient * min(len(dead) / most, 1.0) * error
