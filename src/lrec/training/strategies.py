"""FSDP2, which is sharded training on CPUs or GPUs, and the checkpoints of Lightning's own strategies."""

import secrets
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from lrec.checkpoint.reading import read_together
from lrec.checkpoint.writing import IN_BACKGROUND, Save, Saver, copy_fits, shard_names
from lrec.errors import UserError
from lrec.model.parallelize import Sharding, drop_gathered, sharded_like
from lrec.model.sharded_table import PATIENCE_MINUTES, gloo_group, local_range, local_rows


def is_loss_of_a_process(error: BaseException) -> bool:
    """Whether an error of torch.distributed or gloo says that another process of the run no longer answers."""
    by_gloo = any(words in str(error) for words in ("gloo", "Application timeout caused pair closure"))
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and by_gloo)


def precision_of(trainer: Trainer) -> str:
    """The precision by Lightning's names; bf16-mixed also if `param_dtype` of the strategy is bfloat16."""
    return "bf16-mixed" if getattr(trainer.strategy, "param_dtype", None) else str(trainer.precision)


def products_of(trainer: Trainer) -> torch.dtype:
    """The type of the matrix products of training."""
    return {"bf": torch.bfloat16, "16": torch.float16}.get(precision_of(trainer)[:2], torch.float32)


class CheckpointFiles(TorchCheckpointIO):
    """Checkpoints of strategies that hold the whole network in every process: writes files, reads files and folders."""

    def __init__(self) -> None:
        self.saver = Saver()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a file. With IN_BACKGROUND, a thread writes it, and the saver's `join` waits for it."""
        background = storage_options == IN_BACKGROUND
        self.saver.start(Save(Path(path), checkpoint, background and copy_fits(checkpoint)), background)

    def teardown(self) -> None:
        self.saver.join()

    def load_checkpoint(self, path: str | Path, *_: Any, **__: Any) -> dict[str, Any]:
        return read_together(Path(path))


def saver_of(trainer: Trainer) -> Saver | None:
    """The Saver that writes the trainer's checkpoints; None if Lightning itself writes them."""
    writer = trainer.strategy if isinstance(trainer.strategy, FSDP2) else trainer.strategy.checkpoint_io
    return writer.saver if isinstance(writer, FSDP2 | CheckpointFiles) else None


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism: each process holds its rows of every parameter, and gathers a block at a time.

    The network is wrapped by `parallelize.build`, which reads `sharding`. Checkpoints are folders with a file per
    shard. Any number of processes and any strategy can read them.
    """

    sharding: Sharding
    # As strategies that do not shard do it.
    lightning_restore_optimizer, optimizer_state = Strategy.lightning_restore_optimizer, Strategy.optimizer_state

    def __init__(
        self,
        shard_group: int | None = None,
        param_dtype: Literal["bfloat16"] | None = None,
        timeout_minutes: float = PATIENCE_MINUTES,
    ) -> None:
        """Choose how the processes share the parameters.

        Args:
            shard_group: Number of processes that share one copy of the parameters (hybrid sharding), usually the
                processes of a node; must divide the number of all processes. Null: all processes.
            param_dtype: Type of the computation, with float32 parameters and reductions. Null: the type of the
                parameters.
            timeout_minutes: Minutes for which a process waits for the other processes before it gives up.
        """
        self.patience = timedelta(minutes=timeout_minutes)
        super().__init__(timeout=self.patience)
        self.shard_group, self.param_dtype = shard_group, param_dtype
        self.saver = Saver()

    def setup_environment(self) -> None:
        processes = self.num_nodes * self.num_processes
        group = processes if self.shard_group is None else self.shard_group
        if group < 1 or processes % group:
            raise UserError(f"shard_group {group} must divide the number of processes, {processes}")
        self._data_parallel_size, self._tensor_parallel_size = processes, 1
        super().setup_environment()
        shape = {"shard": group} if group == processes else {"replicate": processes // group, "shard": group}
        mesh = init_device_mesh(self.root_device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
        self.sharding = Sharding(mesh, getattr(torch, self.param_dtype) if self.param_dtype else None)
        for name in shape if len(shape) > 1 else ():  # their timeout is still torch's default
            distributed.distributed_c10d._set_pg_timeout(self.patience, mesh.get_group(name))
        self.saver = Saver(gloo_group())

    def setup(self, trainer: Trainer) -> None:
        """Evaluate without inference mode: the next training step may still use the parameters gathered here."""
        loops = (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop, trainer.predict_loop)
        for loop in loops:
            loop.inference_mode = False
        super().setup(trainer)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """This process's rows of every parameter, as DTensors."""
        assert self.lightning_module is not None
        drop_gathered(self.lightning_module)
        return self.lightning_module.state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a folder, all processes together. With IN_BACKGROUND, a later `poll` or `join` ends the save."""
        path, token = self.broadcast((str(filepath), secrets.token_hex(4)))
        background = storage_options == IN_BACKGROUND
        copied = background and copy_fits(checkpoint, self.num_processes)
        save = Save(Path(path), checkpoint, copied, shard_names(token, self.world_size), self.global_rank)
        self.saver.start(save, background)

    def on_exception(self, exception: BaseException) -> None:
        """Give up a save under way without asking other processes: they may be gone. The former checkpoint stays."""
        self.saver = Saver()
        super().on_exception(exception)

    def teardown(self) -> None:
        self.saver.join()
        super().teardown()

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the rows that this process holds."""
        mine = self.lightning_module_state_dict()

        def rows(name: str, n: int) -> slice:
            match name.split("/"):
                case ["optimizer_states", which, "state", index, *_]:
                    return local_range(_parameters_of(self.optimizers[int(which)])[int(index)])
                case [_, own] if own in mine:
                    return local_range(mine[own])
            return slice(0, n)

        assert self.lightning_module is not None
        fits = self.lightning_module.trainer.state.fn == "fit"
        return read_together(Path(self.broadcast(str(checkpoint_path))), rows, optimizer=fits)

    @torch.no_grad()
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        for name, parameter in self.lightning_module_state_dict().items():
            local_rows(parameter).copy_(checkpoint["state_dict"][name])

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = _parameters_of(optimizer)
            state = {
                index: {k: sharded_like(rows, parameters[index]) if rows.ndim else rows for k, rows in entry.items()}
                for index, entry in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def _parameters_of(optimizer: Optimizer) -> list[torch.Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
