"""The original RCG program (a user's clone of github.com/LTH14/rcg) on a CPU, in today's PyTorch and timm.

Nothing of it is copied: its modules are imported from the clone, and what keeps them from running is patched around
them. Its arithmetic is its own. The patches, all of them:

- `.cuda()` and `torch.cuda.synchronize()` do nothing, and the DDIM sampler keeps its buffers where they are;
- modules that are imported but hardly used are replaced by stubs, so that nothing need be installed beside rcg's own
  requirements: omegaconf (a YAML reader), pytorch_lightning (`LightningModule` is `nn.Module`), cv2, torch_fidelity,
  torch._six, and timm 0.3.2's `models.layers` and `models.registry`;
- timm's VisionTransformer returns the class token from `forward_features`, as in timm 0.3.2, and computes attention
  in the open, as there.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

USED = (
    "config/mage/vqgan.yaml",
    "config/rdm/mocov3vitb_simplemlp_l12_w1536.yaml",
    "engine_mage.py",
    "engine_rdm.py",
    "pixel_generator/mage/models_mage.py",
    "pretrained_enc/models_pretrained_enc.py",
    "rdm/models/diffusion/ddim.py",
    "util/misc.py",
)
"""Files by which a clone is known."""
TINY_RDM = {"model_channels": 64, "bottleneck_channels": 64, "num_res_blocks": 2}
TINY_TOKENIZER = {"ch": 32, "ch_mult": [1, 1, 1, 1, 1], "num_res_blocks": 1}
TINY_MAGE = {
    "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 4, "decoder_embed_dim": 64, "decoder_depth": 2,
    "decoder_num_heads": 2, "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}  # fmt: skip
TINY_ENCODER = {
    "patch_size": 16, "embed_dim": 64, "depth": 2, "num_heads": 4, "qkv_bias": True,
    "norm_layer": partial(nn.LayerNorm, eps=1e-6),
}  # fmt: skip


def missing_files(clone: Path) -> list[str]:
    """What of a clone is not there; nothing if it is one."""
    return [name for name in USED if not (clone / name).is_file()]


class Settings(dict[str, Any]):
    """A YAML mapping whose entries are attributes too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _settings(value: Any) -> Any:
    if isinstance(value, dict):
        return Settings({name: _settings(entry) for name, entry in value.items()})
    return value


def _stub(name: str, **contents: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(contents)
    sys.modules[name] = module


def _stay(self: Any, *_: Any, **__: Any) -> Any:
    return self


class Reference:
    """The reference program, ready to be built, loaded and run.

    Args:
        clone: the user's clone.
        files: folder for checkpoints in the official formats.
        tiny: toy sizes, for rehearsals.
    """

    def __init__(self, clone: Path, files: Path, tiny: bool) -> None:
        self.clone, self.files, self.tiny = clone, files, tiny
        self.arch = "mocov3_vit_tiny" if tiny else "mocov3_vit_base"  # the encoder's name in the reference
        self.encoder_file, self.tokenizer_file = files / "moco.pth.tar", files / "vqgan.ckpt"
        self.rdm_file, self.mage_file = files / "rdm.pth", files / "mage.pth"
        self._make_importable()
        self.encoders = importlib.import_module("pretrained_enc.models_pretrained_enc")
        self.vits = importlib.import_module("pretrained_enc.moco_v3.vits")
        self.mage = importlib.import_module("pixel_generator.mage.models_mage")
        self.rdm_util = importlib.import_module("rdm.util")
        self.misc = importlib.import_module("util.misc")
        self._patch_modules()

    def _make_importable(self) -> None:
        import timm.layers

        reader = types.SimpleNamespace(load=self.read_config)
        _stub("omegaconf", OmegaConf=reader)
        _stub("pytorch_lightning", LightningModule=nn.Module)
        _stub("pytorch_lightning.utilities")
        _stub("pytorch_lightning.utilities.distributed", rank_zero_only=lambda function: function)
        _stub("cv2")
        _stub("torch_fidelity")
        _stub("torch._six", inf=math.inf)
        _stub("timm.models.layers", trunc_normal_=nn.init.trunc_normal_)
        _stub("timm.models.layers.helpers", to_2tuple=timm.layers.to_2tuple)
        _stub("timm.models.registry", register_model=lambda function: function)
        timm.layers.set_fused_attn(False)
        torch.Tensor.cuda = _stay
        nn.Module.cuda = _stay
        torch.cuda.synchronize = lambda *_: None
        sys.path.insert(0, str(self.clone))

    def _patch_modules(self) -> None:
        vit = self.vits.VisionTransformerMoCo
        whole = vit.forward_features
        vit.forward_features = lambda model, x: whole(model, x)[:, 0]
        self.mage.DDIMSampler.register_buffer = lambda sampler, name, value: setattr(sampler, name, value)

        def tiny_encoder(proj_dim: int) -> nn.Module:
            model = vit(**TINY_ENCODER)
            model.head = self.encoders.build_mlp(3, TINY_ENCODER["embed_dim"], 128, proj_dim)
            return model

        self.encoders.mocov3_vit_tiny = tiny_encoder

    # ------------------------------------------------------------------ models and files

    def read_config(self, name: str) -> Settings:
        """A YAML file of the clone, with the encoder's file where it lies here and with toy sizes where wanted."""
        config = yaml.safe_load((self.clone / name).read_text())
        params = config["model"]["params"]
        if "unet_config" in params:
            encoder = params["pretrained_enc_config"]["params"]
            encoder |= {"pretrained_enc_arch": self.arch, "pretrained_enc_path": str(self.encoder_file)}
            params["unet_config"]["params"] |= TINY_RDM if self.tiny else {}
        elif self.tiny:
            params["ddconfig"] |= TINY_TOKENIZER
        return _settings(config)

    def write_files(self) -> None:
        """Random weights in the official checkpoint formats, by the reference's own classes."""
        self.files.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        encoder = self.encoders.__dict__[self.arch](proj_dim=256)
        state = {f"module.base_encoder.{name}": value for name, value in encoder.state_dict().items()}
        torch.save({"state_dict": state}, self.encoder_file)
        config = self.read_config(USED[0]).model.params
        tokenizer = self.mage.VQModel(config.ddconfig, config.n_embed, config.embed_dim)
        torch.save({"state_dict": tokenizer.state_dict()}, self.tokenizer_file)
        rdm = self.rdm_util.instantiate_from_config(self.read_config(USED[1]).model)
        _fill_zeros(rdm.model)
        for averaged, raw in zip(rdm.model_ema.buffers(), [None, None, *rdm.model.parameters()], strict=True):
            if raw is not None:  # the first two are the decay and the number of updates
                averaged.copy_(raw.detach() + 0.01 * torch.randn_like(raw))
        torch.save({"model": rdm.state_dict()}, self.rdm_file)
        mage = self._build_mage(with_rdm=False)
        _fill_zeros(mage)
        torch.save({"model": mage.state_dict()}, self.mage_file)

    def _build_mage(self, with_rdm: bool) -> Any:
        options: dict[str, Any] = {
            "mask_ratio_mu": 0.75, "mask_ratio_std": 0.25, "mask_ratio_min": 0.5, "mask_ratio_max": 1.0,
            "vqgan_ckpt_path": str(self.tokenizer_file), "use_rep": True, "rep_dim": 256, "rep_drop_prob": 0.1,
            "use_class_label": False, "pretrained_enc_arch": self.arch, "pretrained_enc_path": str(self.encoder_file),
            "pretrained_enc_proj_dim": 256, "pretrained_enc_withproj": True,
            "pretrained_rdm_ckpt": str(self.rdm_file) if with_rdm else None,
            "pretrained_rdm_cfg": USED[1] if with_rdm else None,
        }  # fmt: skip
        if self.tiny:
            return self.mage.MaskedGenerativeEncoderViT(**TINY_MAGE, **options)
        return self.mage.mage_vit_base_patch16(**options)

    def load_mage(self, with_rdm: bool = True) -> Any:
        """The generator with all that it holds, loaded as the reference's `main_mage.py` does."""
        model = self._build_mage(with_rdm)
        resume = argparse.Namespace(resume=str(self.mage_file), evaluate=True)
        self.misc.load_model(args=resume, model_without_ddp=model, optimizer=None, loss_scaler=None)
        return model

    def load_rdm(self) -> Any:
        """The RDM, loaded as for sampling."""
        return self.rdm_util.load_model(self.read_config(USED[1]), str(self.rdm_file))

    # ------------------------------------------------------------------ running

    @torch.no_grad()
    def probe(self) -> dict[str, torch.Tensor]:
        """Inputs and outputs of each model, by which another program can tell that it computes the same."""
        model = self.load_mage().eval()
        torch.manual_seed(1)
        representations, noisy, t = torch.randn(2, 256), torch.randn(2, 256), torch.tensor([1, 700])
        images = torch.rand(2, 3, 256, 256)
        seen: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Callable[..., None]:
            return lambda _, inputs, output: seen.update({f"{name}_in": inputs[0].clone(), name: output.clone()})

        handles = [
            model.token_emb.register_forward_hook(keep("tokens")),
            model.mlm_layer.register_forward_hook(keep("logits")),
            model.vqgan.decoder.register_forward_hook(keep("images")),
        ]
        np.random.seed(1)  # noqa: NPY002 (the reference draws from it)
        model.gen_image(2, num_iter=3, choice_temperature=6.0, sampled_rep=representations)  # the last step's remain
        for handle in handles:
            handle.remove()
        rdm = model.rdm_sampler.model
        with rdm.ema_scope():
            condition = rdm.get_learned_conditioning({"class_label": torch.zeros(2).long()})
            denoised = rdm.apply_model(noisy[..., None, None], t, condition)[..., 0, 0]
        codes = model.vqgan.quantize.embedding.weight
        latents = seen["images_in"].permute(0, 2, 3, 1)
        return {
            "representations": representations, "ids": seen["tokens_in"][:, 1:], "logits": seen["logits"][:, 1:, :1024],
            "noisy": noisy, "t": t, "denoised": denoised, "pictures": images, "encoded": self._encode(rdm, images),
            "codes": torch.cdist(latents.flatten(0, 2), codes).argmin(1).view(latents.shape[:3]),
            "decoded": seen["images"],
        }  # fmt: skip

    def _encode(self, rdm: Any, images: torch.Tensor) -> torch.Tensor:
        batch = {"image": images.permute(0, 2, 3, 1), "class_label": torch.zeros(len(images)).long()}
        return rdm.get_input(batch, "image")[0][..., 0, 0]

    @torch.no_grad()
    def generate(self, model: Any, images: int, steps: int, rdm_steps: int, guidance: float) -> dict[str, float]:
        """One call of the reference's sampler; seconds in all, and of the RDM, MAGE and the decoder."""
        marks: list[float] = []

        def mark(*_: Any) -> None:
            marks.append(time.perf_counter())

        def timed_sample(*args: Any, **options: Any) -> Any:
            result = sample(*args, **options)
            mark()
            return result

        sample, decoder = model.rdm_sampler.sample, model.vqgan.decoder
        handles = [decoder.register_forward_pre_hook(mark), decoder.register_forward_hook(mark)]
        model.rdm_sampler.sample = timed_sample
        start = time.perf_counter()
        try:
            model(
                None, None, gen_image=True, bsz=images, choice_temperature=6.0, num_iter=steps, sampled_rep=None,
                rdm_steps=rdm_steps, eta=1.0, cfg=guidance, class_label_gen=None,
            )  # fmt: skip
        finally:
            model.rdm_sampler.sample = sample
            for handle in handles:
                handle.remove()
        end, (drawn, tokens, decoded) = time.perf_counter(), marks
        return {"seconds": end - start, "rdm": drawn - start, "mage": tokens - drawn, "decode": decoded - tokens}

    def train_mage(self, batch_size: int, steps: int) -> list[float]:
        """Seconds of each step of the reference's own training loop: frozen encoder and tokenizer in it, AdamW."""
        engine, model = importlib.import_module("engine_mage"), self.load_mage(with_rdm=False)
        import timm.optim

        groups = timm.optim.param_groups_weight_decay(model, 0.05)
        optimizer = torch.optim.AdamW(groups, lr=1.5e-4, betas=(0.9, 0.95))
        args = argparse.Namespace(accum_iter=1, grad_clip=3.0, lr=1.5e-4, min_lr=0.0, warmup_epochs=10, epochs=200)
        batches = TimedBatches((torch.rand(batch_size, 3, 256, 256), torch.zeros(batch_size).long()), steps)
        engine.train_one_epoch(model, batches, optimizer, torch.device("cpu"), 20, self._scaler(), args=args)
        return batches.seconds()

    def train_rdm(self, batch_size: int, steps: int, with_encoder: bool) -> list[float]:
        """Seconds of each step of the reference's own training loop, its average of the weights included.

        Without the encoder, the representations are given and nothing else changes.
        """
        engine, model = importlib.import_module("engine_rdm"), self.load_rdm()
        trained = [*model.model.parameters(), *model.cond_stage_model.parameters()]
        optimizer = torch.optim.AdamW(trained, lr=1e-6 * batch_size, weight_decay=0.01)
        images, labels = torch.rand(batch_size, 3, 256, 256), torch.zeros(batch_size).long()
        if not with_encoder:
            given = torch.randn(batch_size, 256, 1, 1), {"class_label": labels}
            model.get_input = lambda *_: given
        args = argparse.Namespace(accum_iter=1, cosine_lr=False, class_cond=False)
        batches = TimedBatches((images, labels), steps)
        engine.train_one_epoch(model, batches, optimizer, torch.device("cpu"), 0, self._scaler(), args=args)
        return batches.seconds()

    def _scaler(self) -> Any:
        return self.misc.NativeScalerWithGradNormCount()


@dataclass
class TimedBatches:
    """A data loader that gives one batch again and again, and notes when it is asked."""

    batch: tuple[torch.Tensor, ...]
    steps: int
    asked: list[float] = field(default_factory=list)

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[torch.Tensor, ...]]:
        for _ in range(self.steps):
            self.asked.append(time.perf_counter())
            yield self.batch
        self.asked.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """What each step took, from one request to the next."""
        return [end - start for start, end in zip(self.asked, self.asked[1:], strict=False)]


def _fill_zeros(model: nn.Module) -> None:
    """Trained layers that begin at zero would hide differences: give their weights values."""
    for parameter in model.parameters():
        if parameter.requires_grad and not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
