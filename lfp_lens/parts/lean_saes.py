"""SAELens' training step with fewer matrix products and no passing copies; the arithmetic is the same.

SAELens subtracts the decoder bias from the input of the encoder, so that autograd computes the gradient of that whole
input, a sixth matrix product, only to sum it over the batch for the bias. Summed first it is one product with a vector:

    d loss / d b_dec = - sum over tokens of (g W_enc^T) = - (sum over tokens of g) W_enc^T   (g: gradient at the pre-activations)

`ReLULoss` computes the loss of an SAE with ReLU features and an L1 penalty, and its gradients, in closed form, five products,
in buffers that are made once. `Encode` saves the sixth product for the architectures whose losses stay SAELens' own.
Imported lazily by `parts.saes`, because SAELens takes seconds to import.
"""

from collections.abc import Callable
from typing import Any

import torch
from sae_lens import BatchTopKTrainingSAE, JumpReLUTrainingSAE, StandardTrainingSAE, TopKTrainingSAE
from sae_lens.saes.jumprelu_sae import JumpReLU
from sae_lens.saes.matryoshka_batchtopk_sae import MatryoshkaBatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput

from lfp_lens.parts.batch_topk import QuickBatchTopK

_buffers: dict[tuple[Any, ...], torch.Tensor] = {}


def forget_buffers() -> None:
    """Give the buffers' memory back."""
    _buffers.clear()


class ReLULoss(torch.autograd.Function):
    """Squared error plus weighted L1 norm of a ReLU dictionary, and all its gradients, from five products.

    loss = mean over tokens of ||f W_dec + b_dec - x||^2 + l1 sum_j w_j f_j, with f = ReLU((x - c b_dec) W_enc + b_enc), where
    w_j = ||W_dec_j|| and c = 1 for SAELens' standard SAE, w_j = 1 and c = 0 for the paper's.
    """

    @staticmethod
    def forward(
        ctx: Any, x_ND: torch.Tensor, l1: float, W_enc: torch.Tensor, b_enc: torch.Tensor, W_dec: torch.Tensor,
        b_dec: torch.Tensor, centred: bool, weighted: bool,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        """Give the loss, its two parts, reconstruction, features and pre-activations; the last three lie in buffers."""
        low, full = _product_dtype(x_ND), b_dec.dtype
        (n, width), n_features = x_ND.shape, len(b_enc)
        with torch.autocast(x_ND.device.type, enabled=False):
            down, up = W_enc.to(low), W_dec.to(low)
            in_ND = _buffer("in", (n, width), x_ND, low)
            in_ND.copy_(x_ND)
            if centred:
                in_ND -= b_dec.to(low)
            pre_NF = torch.addmm(b_enc.to(low), in_ND, down, out=_buffer("pre", (n, n_features), x_ND, low))
            features_NF = torch.clamp_min(pre_NF, 0, out=_buffer("features", (n, n_features), x_ND, low))
            out_ND = torch.addmm(b_dec.to(low), features_NF, up, out=_buffer("out", (n, width), x_ND, low))
            error_ND = torch.sub(out_ND, x_ND, out=_buffer("error", (n, width), x_ND, full))
            weight_F = W_dec.norm(dim=1) if weighted else torch.ones_like(b_enc)
            total_F = features_NF.sum(0, dtype=full)
            mse, penalty = error_ND.square().sum() / n, l1 * (total_F * weight_F).sum() / n
            at_out_ND = error_ND.mul_(2 / n)
            low_ND = at_out_ND if low == full else _buffer("at_out", (n, width), x_ND, low).copy_(at_out_ND)
            to_dec = (features_NF.T @ low_ND).to(full)
            if weighted:
                to_dec += (l1 / n * total_F / weight_F)[:, None] * W_dec
            at_pre_NF = _buffer("at_pre", (n, n_features), x_ND, low)
            torch.addmm((l1 / n * weight_F).to(low), low_ND, up.T, out=at_pre_NF)
            torch.ops.aten.threshold_backward.grad_input(at_pre_NF, features_NF, 0, grad_input=at_pre_NF)
            to_enc = (in_ND.T @ at_pre_NF).to(full)
            to_b_enc = at_pre_NF.sum(0, dtype=full)
            to_b_dec = at_out_ND.sum(0)
            if centred:
                to_b_dec -= W_enc @ to_b_enc
        ctx.save_for_backward(to_enc, to_b_enc, to_dec, to_b_dec)
        ctx.mark_non_differentiable(mse, penalty, out_ND, features_NF, pre_NF)
        return mse + penalty, mse, penalty, out_ND, features_NF, pre_NF

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor, *unused: Any) -> tuple[Any, ...]:
        """Hand the gradients over."""
        to_enc, to_b_enc, to_dec, to_b_dec = (part * scale for part in ctx.saved_tensors)
        return None, None, to_enc, to_b_enc, to_dec, to_b_dec, None, None


class Encode(torch.autograd.Function):
    """Pre-activations (x - c b_dec) W_enc + b_enc, whose gradient reaches b_dec without that of the whole input."""

    @staticmethod
    def forward(
        ctx: Any, x_ND: torch.Tensor, W_enc: torch.Tensor, b_enc: torch.Tensor, b_dec: torch.Tensor, centred: bool
    ) -> torch.Tensor:
        """Give the pre-activations [N, F]."""
        low = _product_dtype(x_ND)
        with torch.autocast(x_ND.device.type, enabled=False):
            in_ND = (x_ND - b_dec if centred else x_ND).to(low)
            ctx.save_for_backward(in_ND, W_enc)
            ctx.centred = centred
            return torch.addmm(b_enc.to(low), in_ND, W_enc.to(low)).to(b_enc.dtype)

    @staticmethod
    def backward(ctx: Any, at_pre_NF: torch.Tensor) -> tuple[Any, ...]:
        """Give the gradients of the weights; the input has none."""
        in_ND, W_enc = ctx.saved_tensors
        with torch.autocast(in_ND.device.type, enabled=False):
            to_b_enc = at_pre_NF.sum(0)
            to_enc = (in_ND.T @ at_pre_NF.to(in_ND.dtype)).to(W_enc.dtype)
            return None, to_enc, to_b_enc, -(W_enc @ to_b_enc) if ctx.centred else None, None


class LeanStandardTrainingSAE(StandardTrainingSAE):
    """SAELens' standard SAE with its loss and gradients in closed form; the same weights come out, to rounding.

    What `training_forward_pass` returns lies in buffers that the next step overwrites.
    """

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Give SAELens' step output, whose `loss.backward()` hands over gradients that are computed already."""
        if self.cfg.lp_norm != 1 or not is_plain(self):
            return super().training_forward_pass(step_input)
        return relu_step(self, step_input, float(step_input.coefficients["l1"]), self.W_enc, self.W_dec, weighted=True)


class _LeanTopKEncoder:
    """The encoder of SAELens' top-k SAEs."""

    def encode_with_hidden_pre(self: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give features and pre-activations, both [N, F]."""
        if not is_plain(self):
            return super().encode_with_hidden_pre(x)  # type: ignore[misc]
        hidden_pre = Encode.apply(x, self.W_enc, self.b_enc, self.b_dec, self.cfg.apply_b_dec_to_input)
        if self.cfg.rescale_acts_by_decoder_norm:
            hidden_pre = hidden_pre * self.W_dec.norm(dim=-1)
        return self.activation_fn(hidden_pre), hidden_pre


class LeanTopKTrainingSAE(_LeanTopKEncoder, TopKTrainingSAE):
    """SAELens' TopK SAE in five products."""


class _QuickChoice:
    """The choice of a batch's largest values without sorting it."""

    def get_activation_fn(self: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        """Give the choice that SAELens makes, made faster on a CPU."""
        return QuickBatchTopK(self.cfg.k)


class LeanBatchTopKTrainingSAE(_QuickChoice, _LeanTopKEncoder, BatchTopKTrainingSAE):
    """SAELens' BatchTopK SAE in five products."""


class LeanMatryoshkaTrainingSAE(_QuickChoice, _LeanTopKEncoder, MatryoshkaBatchTopKTrainingSAE):
    """SAELens' Matryoshka SAE, its encoder in two products."""


class LeanJumpReLUTrainingSAE(JumpReLUTrainingSAE):
    """SAELens' JumpReLU SAE in five products."""

    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give features and pre-activations, both [N, F]."""
        if not is_plain(self):
            return super().encode_with_hidden_pre(x)
        hidden_pre = Encode.apply(x, self.W_enc, self.b_enc, self.b_dec, self.cfg.apply_b_dec_to_input)
        threshold = self.threshold.to(hidden_pre.dtype)
        return JumpReLU.apply(hidden_pre, threshold, self.bandwidth, self.cfg.jumprelu_ste_to_input), hidden_pre


def relu_step(
    sae: Any, step_input: TrainStepInput, l1: float, W_enc: torch.Tensor, W_dec: torch.Tensor, *, weighted: bool
) -> TrainStepOutput:
    """Give the step output of a ReLU dictionary by `ReLULoss`."""
    loss, mse, penalty, out_ND, features_NF, pre_NF = ReLULoss.apply(
        step_input.sae_in, l1, W_enc, sae.b_enc, W_dec, sae.b_dec, sae.cfg.apply_b_dec_to_input, weighted
    )
    losses = {"mse_loss": mse, "l1_loss": penalty}
    return TrainStepOutput(step_input.sae_in, out_ND, features_NF, pre_NF, loss, losses)


def is_plain(sae: Any) -> bool:
    """Tell whether nothing hooks into this SAE and nothing scales its input at run time, so that a closed form is the same."""
    return sae.cfg.normalize_activations in ("none", "expected_average_only_in") and not any(
        point.fwd_hooks or point.bwd_hooks for point in sae.hook_dict.values()
    )


def _buffer(name: str, shape: tuple[int, ...], like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Lend a tensor that every step overwrites: allocating 16 MB anew costs more than filling it."""
    key = (name, shape, dtype, like.device)
    if key not in _buffers:
        _buffers[key] = torch.empty(shape, dtype=dtype, device=like.device)
    return _buffers[key]


def _product_dtype(x: torch.Tensor) -> torch.dtype:
    """Give the type that products are computed in: bfloat16 under autocast, else the input's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
