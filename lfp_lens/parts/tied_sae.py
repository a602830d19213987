"""The paper's autoencoders as SAELens architectures: tied (one matrix, unit-norm rows) and untied (a free decoder beside it).

f = ReLU(W x + b_e), x' = W^T f + b_d, with W's rows normalised inside the graph (arXiv 2310.08164, section 3.2, and the
public code's first version, which made the VADER results). It exports as SAELens' `standard`, which every tool reads.
Imported lazily by `parts.saes`, because SAELens takes seconds to import.
"""

from dataclasses import dataclass
from typing import Any

import torch
from sae_lens import StandardSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, register_sae_training_class
from sae_lens.saes.sae import (
    TrainCoefficientConfig,
    TrainingSAE,
    TrainingSAEConfig,
    TrainStepInput,
    TrainStepOutput,
)
from torch import nn
from torch.nn import functional

from lfp_lens.core.errors import LensError
from lfp_lens.parts.lean_saes import is_plain, relu_step


@dataclass
class TiedTrainingSAEConfig(TrainingSAEConfig):
    """Settings of the tied SAE."""

    l1_coefficient: float = 0.001
    """Weight of the features' L1 norm, in the paper's loss: squared error averaged over all elements."""
    apply_b_dec_to_input: bool = False
    """The paper does not subtract the decoder bias from the input."""
    loss_scale: float = 1.0
    """Factor of the paper's loss. SAELens' trainer clips gradients at norm 1, the paper does not: under a small factor nothing is
    clipped, and Adam with its epsilon times the factor takes the same steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.normalize_activations in ("expected_average_only_in", "covariance_whitening"):
            raise LensError("A tied SAE cannot fold a scale into its weights; use normalize_activations='none'.")

    @classmethod
    def architecture(cls) -> str:
        """Name in SAELens' registry."""
        return "tied"

    def get_inference_config_class(self) -> type[Any]:
        """Export as a plain standard SAE."""
        return StandardSAEConfig


class TiedTrainingSAE(TrainingSAE[TiedTrainingSAEConfig]):
    """One matrix W [F, D]; decoder rows are its normalised rows, the encoder their transpose."""

    b_enc: nn.Parameter

    def initialize_weights(self) -> None:
        """Make W orthogonal and both biases zero; SAELens may ask for this on the meta device."""
        place = {"dtype": self.dtype, "device": self.device}
        self.b_dec = nn.Parameter(torch.zeros(self.cfg.d_in, **place))
        self.b_enc = nn.Parameter(torch.zeros(self.cfg.d_sae, **place))
        self.W = nn.Parameter(torch.empty(self.cfg.d_sae, self.cfg.d_in, **place))
        if self.W.device.type != "meta":
            nn.init.orthogonal_(self.W)

    @property
    def rows(self) -> torch.Tensor:
        """Unit-norm rows [F, D]; the gradient flows through the norm."""
        return functional.normalize(self.W, dim=-1)

    @property
    def W_dec(self) -> torch.Tensor:
        """Decoder [F, D]."""
        return self.rows

    @property
    def W_enc(self) -> torch.Tensor:
        """Encoder [D, F]."""
        return self.rows.T

    def get_coefficients(self) -> dict[str, float | TrainCoefficientConfig]:
        """Name the loss weights that SAELens schedules."""
        return {"l1": TrainCoefficientConfig(value=self.cfg.l1_coefficient, warm_up_steps=0)}

    def encode_with_hidden_pre(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Give features and pre-activations, both [N, F]."""
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        return self.hook_sae_acts_post(torch.relu(hidden_pre)), hidden_pre

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Give SAELens' step output with the paper's loss; gradients are in closed form where nothing hooks in.

        The paper averages the squared error over all elements where SAELens sums over D.
        """
        if is_plain(self):
            l1 = float(step_input.coefficients["l1"] * self.cfg.d_in)
            output = relu_step(self, step_input, l1, self.W_enc, self.W_dec, weighted=False)
        else:
            output = super().training_forward_pass(step_input)
        factor = self.cfg.loss_scale / self.cfg.d_in
        output.loss = output.loss * factor
        output.losses = {name: part * factor for name, part in output.losses.items()}
        return output

    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: torch.Tensor,
        hidden_pre: torch.Tensor,
        sae_out: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Give the L1 term for a squared error that is summed over D, hence the factor d_in."""
        l1 = step_input.coefficients["l1"] * self.cfg.d_in
        return {"l1_loss": l1 * feature_acts.norm(p=1, dim=-1).mean()}

    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Write both matrices out; safetensors refuses shared storage, so each is its own copy."""
        for name in ("W", "W_out"):
            state_dict.pop(name, None)
        state_dict["W_dec"] = self.W_dec.detach().clone().contiguous()
        state_dict["W_enc"] = self.W_enc.detach().clone().contiguous()


@dataclass
class UntiedTrainingSAEConfig(TiedTrainingSAEConfig):
    """Settings of the untied SAE; those of the tied one."""

    @classmethod
    def architecture(cls) -> str:
        """Name in SAELens' registry."""
        return "untied"


class UntiedTrainingSAE(TiedTrainingSAE):
    """The paper's other autoencoder (appendix F, Table 11): encoder rows of unit norm, a decoder of its own, not normalised.

    Its L1 term can be lowered by longer decoder rows, which is one reason why nobody trains it today.
    """

    def initialize_weights(self) -> None:
        """Let the decoder begin as the encoder's transpose, so that both kinds begin alike."""
        super().initialize_weights()
        self.W_out = nn.Parameter(self.W.detach().clone())

    @property
    def W_dec(self) -> torch.Tensor:
        """Decoder [F, D]."""
        return self.W_out


for name, made, config in (
    ("tied", TiedTrainingSAE, TiedTrainingSAEConfig),
    ("untied", UntiedTrainingSAE, UntiedTrainingSAEConfig),
):
    if name not in SAE_TRAINING_CLASS_REGISTRY:
        register_sae_training_class(name, made, config)
