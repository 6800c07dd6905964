"""SequenceDataModule: what every data set shares; a data set adds `store_name`, `source` and `read`."""

import secrets
from abc import ABC, abstractmethod
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from lightning.pytorch import LightningDataModule

from lrec.common.files import json_hash
from lrec.data.batching.eval_batches import EvalBatches, affordable_users, check_targets, sampled, testable_users
from lrec.data.batching.plan import BatchPlan, shared_epoch
from lrec.data.batching.train_batches import Ranks, ServedLoader, TrainLoader
from lrec.data.features import Chosen, Features, Learned
from lrec.data.formats.readers import Columns
from lrec.data.sources.download import copy_here, place_of, url_of
from lrec.data.splits.reduction import Reduction, TrainingPart, of_domain, training_part
from lrec.data.splits.rules import LastItems, Split, SplitRule, Targets
from lrec.data.store.made_once import Arrays, arrays_of, made_if_large, shared_folder
from lrec.data.store.ordering import Repeats
from lrec.data.store.prepare import RawInteractions, prepare_store, store_path
from lrec.data.store.store import TIME_UNITS, Store, seconds_in
from lrec.errors import UserError, check_choices, check_kinds, check_range

ColdTargets = Literal["missed", "dropped", "apart"]


class SequenceDataModule(LightningDataModule, ABC):
    """Raw interactions -> store -> split -> batches.

    A subclass gives the name of its store (`store_name`), values that identify its raw data (`source`), and the rows
    themselves (`read`). `prepare_data` calls `read` only if data_dir has no store of this source and k_core. If the
    option store names a store, lrec calls none of the three methods.

    After `setup`: store, cuts (where each user is cut), batch_plan, and the properties below.

    Attributes:
        columns: Names of the raw data's columns; None if the columns have no names.
        min_rating: lrec keeps interactions with at least this rating; None keeps all.
        target_events: Types of event that may be targets; None for all.
        with_times: Whether batches contain the times of events; `carry_times` sets this attribute.
        feature_columns: Columns of the raw data that are features, and whether they are numbers; `read` gives them.
        learned: The features as a network reads them.
    """

    k_core: int = 0
    columns: Columns | None = None
    min_rating: float | None = None
    repeats: Repeats = True
    target_events: list[str] | None = None
    with_times: bool = False
    given_store: Path | None = None
    store: Store
    cuts: Split
    batch_plan: BatchPlan
    learned: Learned = Learned([], None, None, [])

    def __init__(
        self,
        data_dir: Path = Path("data"),
        split: SplitRule = LastItems(),  # noqa: B008 (frozen)
        reduction: Reduction = Reduction(),  # noqa: B008 (frozen)
        max_len: int = 50,
        targets_per_step: int = 4096,
        k_core: int = 0,
        only_domain: str | None = None,
        num_workers: int = 0,
        seed: int = 0,
        memory_gib: float | None = None,
        validation_users: int | Literal["auto", "all"] = "auto",
        test_users: int | Literal["auto", "all"] = "auto",
        cold_targets: ColdTargets = "missed",
        repeats: Repeats = True,
        recent_popularity: float | str = 0.1,
        store: Path | None = None,
        event_features: Features | None = None,
        item_features: Features | None = None,
    ) -> None:
        """Options of every data set.

        Args:
            data_dir: Folder of prepared stores.
            split: Rule that holds out interactions for validation and test: LastItems (trajectory, held_out_users,
                trajectory_min_length), GlobalTemporal (validate_from, test_from, ...) or UserSplit (validation, test).
            reduction: Part of the training data that is used.
            max_len: Longest input, in items.
            targets_per_step: Largest number of targets in a global step, over all ranks and accumulated batches, on
                average.
            k_core: Keep only users and items with at least this number of interactions; 0 keeps all.
            only_domain: Train and evaluate only on the items of this domain; null for all domains. The cuts between
                training, validation and test are those of all domains together.
            num_workers: Worker processes that assemble batches; 0 for none.
            seed: Seed of the order of training, of dropout and of negatives.
            memory_gib: Memory for the rows while a store is prepared, in GiB; null for half of what is available.
            validation_users: Number of users for validation (a fixed sample), or all. With auto, `validate` works like
                test_users. In `fit`, an evaluation then costs at most a tenth of the training since the previous
                evaluation, but has at least 2,000 users.
            test_users: Number of users for the test (a fixed sample), or all. With auto, the test has all users, but at
                most 1e11 pairs of a target and an item, and at least 2,000 users.
            cold_targets: How targets outside the catalogue count: as misses (missed), not at all (dropped), or as
                misses, but HR, NDCG and other metrics are also reported without them (apart).
            repeats: Keep all interactions of a user with the same item; false keeps the first. not_in_a_row drops an
                interaction if the previous interaction of the user has the same item; k_core counts what remains.
            recent_popularity: Training interactions that the baseline recent-popularity counts: the last share, or the
                interactions of the last duration (90s, 30m, 12h, 7d, 2w).
            store: Folder or URL of a prepared store, which lrec reads instead of raw data; null to prepare a store in
                data_dir.
            event_features: Columns of the log with features of an event, or of its user, which the network reads with
                the item; null for none.
            item_features: Columns with features of an item, from which lrec makes the item's row of the item table (see
                model.item_vectors_use); null for none.
        """
        super().__init__()
        self._features = Chosen(event_features, item_features)
        self.feature_columns = self._features.columns_of_log()
        check_kinds(("data.split", split, SplitRule), ("data.reduction", reduction, Reduction))
        check_choices(
            ("data.cold_targets", cold_targets, ColdTargets),
            ("data.repeats", repeats, Literal[True, False, "not_in_a_row"]),
        )
        check_range("max_len", max_len, at_least=1)
        check_range(f"targets_per_step, with max_len {max_len},", targets_per_step, at_least=2 * max_len)
        for name, value in (("k_core", k_core), ("num_workers", num_workers), ("seed", seed)):
            check_range(name, value, at_least=0)
        check_range("memory_gib", memory_gib, above=0)
        for name, users in (("validation_users", validation_users), ("test_users", test_users)):
            if isinstance(users, int):
                check_range(name, users, at_least=1)
            else:
                check_choices((f"data.{name}", users, Literal["auto", "all"]))
        if not isinstance(recent_popularity, str):
            check_range("recent_popularity", recent_popularity, above=0, at_most=1)
        elif not seconds_in(recent_popularity):
            raise UserError(f"data.recent_popularity {recent_popularity} is neither a duration such as 7d nor a share")
        self.data_dir = Path(data_dir)
        self.split = split
        self.reduction = reduction
        self.max_len = max_len
        self.targets_per_step = targets_per_step
        self.k_core = k_core
        self.only_domain = only_domain
        self.num_workers = num_workers
        self.seed = seed
        self.memory_gib = memory_gib
        self.validation_users = validation_users
        self.test_users = test_users
        self.cold_targets = cold_targets
        self.repeats = repeats
        self.recent_popularity = recent_popularity
        self._urls: list[str] = []
        self.given_store = None if store is None else self.local(store)
        self._train_loader: TrainLoader | None = None
        self._resume: dict[str, Any] | None = None

    def local(self, path: Path) -> Path:
        """The local path of raw data: the path itself, or for a URL the place of the copy that `prepare_data` makes."""
        if (url := url_of(path)) is None:
            return Path(path)
        if self.given_store is None:
            self._urls.append(url)
        return place_of(url, self.data_dir / "raw")

    @property
    @abstractmethod
    def store_name(self) -> str:
        """First part of the store's name: letters, digits, _ and -."""

    @abstractmethod
    def source(self) -> dict[str, Any]:
        """What identifies the raw data and how they are read: JSON-able, files by hash (`prepare.source_hashes`)."""

    @abstractmethod
    def read(self) -> RawInteractions:
        """Read the raw data."""

    @property
    def store_path(self) -> Path:
        """Where the store is, or where it will be."""
        return self.given_store or store_path(self.data_dir, self.store_name, self._source(), self.k_core)

    def _source(self) -> dict[str, Any]:
        """The source, with repeats and features only if they are not the default: other stores keep their path."""
        repeats = {} if self.repeats is True else {"repeats": self.repeats}
        return self.source() | repeats | ({"features": self.feature_columns} if self.feature_columns else {})

    def prepare_data(self) -> None:
        """Write the store unless it exists."""
        for url in self._urls:
            copy_here(url, self.data_dir / "raw")
        if self.given_store is None:
            name, source, reading = self.store_name, self._source(), _reading(self)
            prepare_store(self.data_dir, name, source, self.k_core, self.read, self.memory_gib, reading)

    def open_store(self) -> Store:
        """The store; UserError if it was given and an option would read the raw data in another way."""
        store = Store.open(self.store_path)
        if self.given_store is not None:
            stored = store.prepared_with(_reading(self), _reading(type(self)))
            columns: dict[str, Any] = {name: stored.get(f"{name}_column") for name in Columns.__dataclass_fields__}
            self.columns = Columns(**columns) if "user_column" in stored else None
            self.k_core, self.min_rating, self.repeats = (stored[each] for each in ("k_core", "min_rating", "repeats"))
        store.check_features(self.feature_columns)
        return store

    def cut(self, store: Store) -> Split:
        """Cut a store's users, and keep only the chosen domain."""

        def made() -> Arrays:
            of_types = {} if self.target_events is None else {"target_N": store.of_types(self.target_events)}
            return arrays_of(self.split(store)) | of_types

        split = Split.of_arrays(store, made_if_large(store, self.split, "split", self.target_events, made))
        split = split if self.only_domain is None else of_domain(split, self.only_domain)
        if self.cold_targets == "dropped":
            known_N = split.catalogue_index_I[split.store.items_N] >= 0
            split = replace(split, target_N=known_N if split.target_N is None else known_N & split.target_N)
        return split

    def setup(self, stage: str | None = None) -> None:
        """Open the store, cut it, and check the cut for leaks."""
        if hasattr(self, "batch_plan"):
            return
        self.cuts = self.cut(self.open_store())
        self.store = self.cuts.store
        if isinstance(self.recent_popularity, str) and self.store.time_unit not in TIME_UNITS:
            given = f"data.recent_popularity {self.recent_popularity}"
            raise UserError(f"{given}: the data's times are no dates; give a share")
        check_targets(self.cuts, self.target_events, self.cold_targets)
        if any(self._features):
            self.learned = self._features.learn(self.cuts)
            self.cuts = replace(self.cuts, features=self.learned.event_codes)
        made = partial(training_part, self.cuts, self.reduction)
        part = made_if_large(self.store, self.split, "part", repr(self.reduction), lambda: arrays_of(made()))
        self.batch_plan = BatchPlan(TrainingPart(self.cuts, **part), self.max_len, self.targets_per_step)
        if stage == "fit" and not self.cuts.is_known(self.cuts.val_targets).any():
            raise UserError(
                f"none of the {len(self.cuts.val_targets.users_T):,} validation targets is an item of the training "
                "part, so there is no loss to evaluate: use more users, a k_core or another split"
            )

    def carry_times(self) -> None:
        """Let batches contain the times of events, for a network that reads them; UserError if the data have none."""
        if self.store.times_N is None:
            raise UserError("model.architecture.time: the data have no times (--data.time_column)")
        self.with_times = True

    @property
    def n_items(self) -> int:
        """V: items of the catalogue."""
        return len(self.cuts.catalogue_V)

    @property
    def item_counts_V(self) -> np.ndarray:
        """Interactions of each catalogue item in the unreduced training part, int64."""
        return self.cuts.counts_V

    @property
    def U(self) -> int:
        """Targets of an epoch."""
        return self.batch_plan.part.n_targets

    @property
    def steps_per_epoch(self) -> int:
        """S: global steps of an epoch."""
        return self.batch_plan.n_steps

    @property
    def data_hash(self) -> str:
        """Hash of the store, the split and the reduction."""
        targets = [] if self.target_events is None else [sorted(self.target_events)]
        cut = [self.store.hash, self.split.trained_on, repr(self.reduction)]
        return json_hash([*cut, *targets, *self.learned.identity])

    @property
    def described(self) -> dict[str, Any]:
        """What the store holds and where it is cut, as JSON-able values."""
        of_store = {"name": self.store.meta["name"], "statistics": self.store.statistics, "facts": self.store.facts}
        cut = {"split": repr(self.split), "reduction": repr(self.reduction), "counts": self.cuts.counts}
        return of_store | cut | {"target_events": self.target_events}

    @property
    def event_rows(self) -> list[str]:
        """Names of the vectors besides those of items: types of event, and values of features of events."""
        of_features = (each.row_names for each in self.learned.vocabularies if each.of != "item")
        return [*self.store.event_types, *chain.from_iterable(of_features)]

    @property
    def floor(self) -> dict[str, float] | None:
        """Lowest loss that any model can reach, in nats, for val and test; None if it is not known."""
        return None

    def item_table(self) -> pl.DataFrame:
        """The catalogue: item (catalogue index), raw_id, count (in the training part), domain."""
        items, counts = pl.Series("item", np.arange(self.n_items)), pl.Series("count", self.item_counts_V)
        return self.store.item_table[self.cuts.catalogue_V].select(items, "raw_id", counts, "domain")

    @property
    def ids_of_other_domains(self) -> pl.Series:
        """Raw ids of the store's items that are not of `only_domain`."""
        return self.store.item_table.filter(pl.col("domain").ne_missing(self.only_domain))["raw_id"]

    def train_dataloader(self) -> TrainLoader:
        """This rank's training batches; they continue where a loaded checkpoint stopped."""
        ranks, epoch_plan = self._ranks(), None
        if ranks.world * max(self.num_workers, 1) > 1:  # each would make every epoch's plan
            token = secrets.token_hex(8)
            folder = shared_folder(token if self.trainer is None else self.trainer.strategy.broadcast(token))
            epoch_plan = partial(shared_epoch, self.batch_plan, self.seed, folder)
        plan, workers = self.batch_plan, self.num_workers
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        loader = TrainLoader(plan, self.seed, ranks, workers, self._on_gpu, epoch_plan, self.with_times, limit)
        if self._resume is not None:
            loader.load_state_dict(self._resume)
        self._train_loader, self._resume = loader, None
        return loader

    def evaluated(self, stage: str) -> tuple[Targets, tuple[int, int] | None]:
        """What a stage (val or test) evaluates; and (evaluated users, all users), or None if it evaluates them all."""
        every = self.cuts.val_targets if stage == "val" else self.cuts.test_targets
        some = self.validation_users if stage == "val" else self.test_users
        if some == "auto":
            fits = stage == "val" and self.trainer is not None and self.trainer.state.fn == "fit"
            some = affordable_users(self.batch_plan, self.trainer) if fits else testable_users(every, self.n_items)
        return sampled(every, some)

    def has_sets(self, stage: str) -> bool:
        """Whether a user's targets of the stage, val or test, are one set."""
        return bool(self.cuts.sets_2[("val", "test").index(stage)])

    def val_dataloader(self) -> ServedLoader:
        """The validation targets of the evaluated users, after the items before them."""
        return self._evaluation("val", "validation")

    def test_dataloader(self) -> ServedLoader:
        """The test targets of the evaluated users, after the items before them, validation targets included."""
        return self._evaluation("test", "test")

    def _evaluation(self, stage: str, name: str) -> ServedLoader:
        targets, sample = self.evaluated(stage)
        if len(targets.users_T) == 0:
            raise UserError(f"no user has a {name} target: choose another split or more data")
        if sample is not None:
            said = f"{sample[0]:,} of {sample[1]:,} users"
            if stage == "val" and not self.cuts.is_known(targets).any():
                raise UserError(f"{name}: no target of {said} is in the catalogue: raise --data.{name}_users")
            if self._ranks().rank == 0:
                print(f"{name}: {said} (--data.{name}_users {getattr(self, f'{name}_users')})")
        sizes_T = getattr(self.cuts, f"{stage}_targets_U")[targets.users_T] if self.has_sets(stage) else None
        return self._loader(targets, sizes_T)

    def predict_dataloader(self) -> ServedLoader:
        """Every user's whole history, without a target."""
        lengths_U = np.diff(self.store.offsets_U1)
        return self._loader(Targets(np.arange(len(lengths_U)), lengths_U))

    def state_dict(self) -> dict[str, Any]:
        """The training loader's state, always. Lightning itself keeps it only in the middle of an epoch."""
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give the state to a training loader that has not begun; otherwise keep it for the next one."""
        if state_dict and self._train_loader is not None and not self._train_loader.begun:
            self._train_loader.load_state_dict(state_dict)
        else:
            self._resume = state_dict or None

    def _loader(self, targets: Targets, sizes_T: np.ndarray | None = None) -> ServedLoader:
        batches = EvalBatches(self.cuts, targets, self.max_len, self._ranks(), self.with_times, sizes_T)
        return ServedLoader(batches, range(len(batches)), self.num_workers, self._on_gpu)

    @property
    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _ranks(self) -> Ranks:
        if self.trainer is None:
            return Ranks()
        return Ranks(self.trainer.world_size, self.trainer.global_rank, self.trainer.accumulate_grad_batches)


def _reading(data: SequenceDataModule | type[SequenceDataModule]) -> dict[str, Any]:
    """The options that decide how raw data are read; for a class, their defaults."""
    columns = {} if data.columns is None else {f"{key}_column": name for key, name in vars(data.columns).items()}
    return {"k_core": data.k_core, "min_rating": data.min_rating, "repeats": data.repeats, **columns}
