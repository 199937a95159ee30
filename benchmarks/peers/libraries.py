"""The same distillation by other libraries, each as its examples write it. Runs in the peers' environment: libraries.py ROW."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from typing import Any

os.environ.update(TQDM_DISABLE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_OFFLINE="1")
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402 - the settings above must come first
import torch.nn.functional as F  # noqa: E402
from pairs import BATCH, LABELS, LR, MOMENTUM, PAIRS, TEMPERATURE, Unit, examples, loader, loss_of, serve, sgd, student, teacher  # noqa: E402
from torch import Tensor, nn  # noqa: E402

# torchvision's wheel beside a CPU build of torch lacks its C extension; it imports once these two schemas are there.
_vision = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _vision.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def torchdistill(pair: str) -> Unit:
    """torchdistill 1.1.5: the loop of its image classification example, with its MetricLogger."""
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    side = {"forward_proc": "forward_batch_only", "sequential": [], "wrapper": None}
    criterion = {"key": "KDLoss", "kwargs": {
        "student_module_path": ".", "student_module_io": "output", "teacher_module_path": ".", "teacher_module_io": "output",
        "temperature": TEMPERATURE, "alpha": LABELS, "reduction": "batchmean"}}
    box = get_distillation_box(teacher(pair), student(pair), {"train": examples(pair)}, {
        "num_epochs": 10**6, "log_freq": 100, "val_data_loader": {},
        "train_data_loader": {"dataset_id": "train", "sampler": {"class_or_func": torch.utils.data.RandomSampler},
                              "kwargs": {"batch_size": BATCH, "drop_last": True, "num_workers": 0}, "requires_supp": True},
        "teacher": {**side, "requires_grad": False}, "student": {**side, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": LR, "momentum": MOMENTUM}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"weight": 1.0, "criterion": criterion}}}},
    }, torch.device("cpu"), None, False, 1)
    epochs = iter(range(10**6))

    def unit() -> int:
        seen = 0
        for _ in range(PAIRS[pair].epochs[0]):
            box.pre_epoch_process(epoch=next(epochs))
            meters = MetricLogger(delimiter="  ")
            meters.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
            with contextlib.redirect_stdout(io.StringIO()):
                for inputs, labels, more in meters.log_every(box.train_data_loader, 100, "epoch"):
                    loss = box.forward_process(inputs, labels, more)
                    box.post_forward_process(loss=loss)
                    meters.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
                    seen += len(inputs)
            box.post_epoch_process()
        return seen

    return unit


class _Answering(nn.Module):
    """TextBrewer wants models that take the whole batch."""

    def __init__(self, model: nn.Module, hard: bool) -> None:
        super().__init__()
        self.model, self.hard = model, hard

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.model(inputs)
        return {"logits": logits, "losses": F.cross_entropy(logits, labels)} if self.hard else {"logits": logits}


def textbrewer(pair: str, cached: bool = False) -> Unit:
    """TextBrewer: GeneralDistiller; or BasicDistiller with its cache of logits, whose batches are then the same ones for ever, and
    which has no label term here (a little less work). The cache is filled in a call's first epoch, which does not count."""
    from textbrewer import BasicDistiller, DistillationConfig, GeneralDistiller, TrainingConfig

    folder = tempfile.mkdtemp(prefix="understudy-peer-")
    learner = _Answering(student(pair), not cached)
    optimizer, batches = sgd(learner), loader(pair)
    hard, soft = (0, 1) if cached else (LABELS, 1 - LABELS)
    config = DistillationConfig(temperature=TEMPERATURE, hard_label_weight=hard, kd_loss_weight=soft, kd_loss_type="ce",
                                is_caching_logits=cached)
    how = TrainingConfig(gradient_accumulation_steps=1, ckpt_frequency=1, log_dir=folder, output_dir=folder, device="cpu")
    adapt = lambda batch, outputs: outputs  # noqa: E731 - its interface wants two functions
    distiller = (BasicDistiller if cached else GeneralDistiller)(how, config, _Answering(teacher(pair), False), learner, adapt, adapt)
    epochs, size = PAIRS[pair].epochs[0], PAIRS[pair].slow

    def train(count: int, callback: Any) -> None:
        with distiller:
            distiller.train(optimizer, batches, num_epochs=count, scheduler_class=None, scheduler_args=None, callback=callback)

    def whole() -> int:
        train(epochs, None)
        return epochs * size

    def after_the_first() -> tuple[float, float, int]:
        distiller.logits_cache = []
        ends: list[tuple[float, float]] = []
        train(1 + max(2, epochs), lambda model, step: ends.append((time.perf_counter(), time.process_time())))
        wall, cpu = (statistics.median(b[i] - a[i] for a, b in zip(ends, ends[1:], strict=False)) for i in (0, 1))
        return wall, cpu, size

    return after_the_first if cached else whole


def trainer(pair: str) -> Unit:
    """transformers.Trainer with a compute_loss that asks the teacher."""
    from transformers import Trainer, TrainerCallback, TrainingArguments

    data, asked, epochs = examples(pair), teacher(pair), PAIRS[pair].epochs[0]

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, row: int) -> dict[str, Tensor]:
            inputs, label = data[row]
            return {"x": inputs, "labels": label}

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = student(pair)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return {"logits": self.model(x)}

    class Distilling(Trainer):
        def compute_loss(self, model: nn.Module, inputs: dict, return_outputs: bool = False, **_: Any) -> Any:
            outputs = model(inputs["x"])
            with torch.no_grad():
                answer = asked(inputs["x"])
            loss = loss_of(outputs["logits"], answer, inputs["labels"])
            return (loss, outputs) if return_outputs else loss

    class Clock(TrainerCallback):
        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            if not hasattr(self, "begun"):
                self.begun = time.perf_counter(), time.process_time()

        def on_epoch_end(self, *_: Any, **__: Any) -> None:
            self.ended = time.perf_counter(), time.process_time()

    model = Model()

    def unit() -> tuple[float, float, int]:
        clock = Clock()
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(prefix="understudy-peer-"), num_train_epochs=epochs, per_device_train_batch_size=BATCH,
            dataloader_drop_last=True, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, learning_rate=LR,
            optim="sgd", optim_args=f"momentum={MOMENTUM}", use_cpu=True, remove_unused_columns=False, lr_scheduler_type="constant")
        Distilling(model=model, args=arguments, train_dataset=Rows(), callbacks=[clock]).train()
        return clock.ended[0] - clock.begun[0], clock.ended[1] - clock.begun[1], epochs * len(data)

    return unit


ROWS = {"torchdistill": torchdistill, "TextBrewer": textbrewer, "TextBrewer, cached": lambda pair: textbrewer(pair, True),
        "HF Trainer": trainer}

if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(lambda order: ROWS[sys.argv[1]](order["pair"]))
