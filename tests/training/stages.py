"""A tiny stage with everything a real one has: dropout, batch norm, view noise, EMA, two objectives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from rcg.core import draws
from rcg.core.dropout import Dropout
from rcg.core.files import write_json
from rcg.training.stage import Batch, Stage


class Points:
    """Regression points; each sample's view noise follows from its seed."""

    fingerprint = "points"

    def __init__(self, size: int = 50, dim: int = 6) -> None:
        generator = np.random.default_rng(0)
        self.x = generator.standard_normal((size, dim)).astype(np.float32)
        self.y = self.x @ generator.standard_normal((dim, 1)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        noise = np.stack([np.random.default_rng(int(s)).standard_normal(self.x.shape[1]) for s in seeds])
        x = self.x[indices] + 0.05 * noise.astype(np.float32)
        return {"x": torch.from_numpy(x), "y": torch.from_numpy(self.y[indices])}


class Regression(nn.Module):
    def __init__(self, dim: int, dropout: float, norm: bool) -> None:
        super().__init__()
        hidden = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.net = nn.Sequential(nn.Linear(dim, 16), hidden, nn.ReLU(), Dropout(dropout), nn.Linear(16, 1))

    def forward(self, batch: Batch) -> Batch:
        error = (self.net(batch["x"]) - batch["y"]).square().mean()
        return {"loss": error, "rmse": error.detach().sqrt()}


class RegressionStage(Stage):
    name = "regression"

    def __init__(self, objectives: int = 1, dropout: float = 0.1, norm: bool = True, width: int = 16) -> None:
        torch.manual_seed(0)
        self.dataset = Points()
        self.objectives = {f"o{i}": Regression(6, dropout, norm) for i in range(objectives)}
        self.width = width

    def ema_modules(self) -> dict[str, nn.Module]:
        return {"net": self.objectives["o0"].net}

    def prepare(self, batch: Batch) -> Batch:
        return batch | {"x": batch["x"] + 0.01 * draws.normal_like(batch["x"])}

    def evaluate(self, seed: int) -> dict[str, float]:
        whole = self.dataset.batch(np.arange(50), np.arange(50).astype(np.uint64))
        return {"error": float(self.objectives["o0"](whole)["loss"]), "draw": float(torch.rand(()))}

    def export(self, folder: Path) -> None:
        save_file({k: v.clone() for k, v in self.objectives["o0"].state_dict().items()}, folder / "model.safetensors")
        write_json(folder / "config.json", {})

    def identity(self) -> dict[str, object]:
        return {"width": self.width}


class MadeOfAll:
    """Small stages by name, whose samples do not mix: what several processes compute must be what one computes."""

    @staticmethod
    def made(name: str) -> Stage:
        torch.manual_seed(0)
        if name == "regression":
            return RegressionStage(dropout=0.3, norm=False)
        if name in ("ddpm", "flow"):
            from rcg.rdm.ddpm.objective import DDPMObjective
            from rcg.rdm.flow.flow_mlp import FlowMLP
            from rcg.rdm.flow.objective import FlowObjective
            from rcg.rdm.representation_mlp import RepresentationMLP
            from rcg.rdm.train import RDMStage

            sizes = {"representation_dim": 8, "width": 16, "depth": 1, "dropout": 0.2}
            of = {
                "ddpm": lambda: DDPMObjective(RepresentationMLP(**sizes)),
                "flow": lambda: FlowObjective(FlowMLP(**sizes)),
            }
            return RDMStage(of[name](), Vectors(8), eval_samples=4)
        if name == "synclr":
            from rcg.encoders.recipes import SynCLRRecipe
            from rcg.encoders.ssl_encoder import SSLEncoder
            from rcg.encoders.train import EncoderStage

            vit = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
            head = {"head_layers": 2, "head_hidden_dim": 16, "head_dim": 8, "head_type": "synclr"}
            encoder = SSLEncoder("vit_tiny_patch16_224", vit, image_size=8, **head)
            recipe = SynCLRRecipe(2, local_crops=1, prototypes=8, patch_hidden_dim=8, drop_path=0.3)
            captions = Captions()
            return EncoderStage(recipe.objective(encoder, 8), captions, plain=captions.alone(), eval_samples=8)
        assert name == "mage"
        from rcg.image_gen.mage.objective import MageObjective
        from rcg.image_gen.mage.transformer import MageTransformer
        from rcg.image_gen.train import GeneratorStage

        model = MageTransformer(
            num_codes=12, grid_size=4, width=16, depth=1, num_heads=2, decoder_width=16, decoder_depth=1,
            decoder_num_heads=2, condition="none", dropout=0.2,
        )  # fmt: skip
        return GeneratorStage(MageObjective(model), Tokens(), held_out=4)


class Vectors:
    fingerprint = "vectors"

    def __init__(self, dim: int) -> None:
        self.x = np.random.default_rng(0).standard_normal((40, dim)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        return {"representations": torch.from_numpy(self.x[indices])}


class Captions:
    """Two images of each caption; `alone`: the first of them."""

    fingerprint = "captions"

    def __init__(self, alone: bool = False) -> None:
        self.images = np.random.default_rng(0).integers(0, 256, (40, 2, 3, 8, 8), dtype=np.uint8)
        self.single = alone

    def alone(self) -> Captions:
        return Captions(True)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        images = torch.from_numpy(self.images[indices])
        return {"images": images[:, 0]} if self.single else {"images": images, "identities": torch.from_numpy(indices)}


class Tokens:
    fingerprint = "tokens"

    def __init__(self) -> None:
        self.ids = np.random.default_rng(0).integers(0, 12, (44, 4, 4))

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: np.ndarray, seeds: np.ndarray) -> Batch:
        return {"tokens": torch.from_numpy(self.ids[indices])}
