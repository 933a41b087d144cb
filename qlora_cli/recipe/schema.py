"""Every recipe key, once: its name, type, range, unit, default and source.

Names are those of the Hugging Face stack wherever one exists. A recipe is frozen after it is read. Sections
import no ML library, so `qlora validate` needs none.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from qlora_cli.recipe.coercions import FolderOrId, Names, Number, as_float, as_tuple
from qlora_cli.recipe.data_schema import DataSection
from qlora_cli.recipe.eval_schema import EvalSection
from qlora_cli.recipe.quantization_schema import QuantizationSection
from qlora_cli.recipe.section import Section

DEFAULT_EPOCHS = 3.0


class ModelSection(Section):
    """The pretrained model that stays frozen."""

    base_model: FolderOrId = Field(min_length=1)
    """Hub id or local folder of the base model."""

    revision: str | None = None
    """Branch, tag or commit on the Hub. A commit hash makes the run repeatable."""

    trust_remote_code: bool = False
    """Run Python code that the model repository ships, at `revision`. Only for repositories whose code you have
    read."""

    allow_pickle: bool = False
    """Read pickled weights (`.bin`) of a base that has no safetensors. A pickle can hold code; torch refuses what it
    knows of it. Only for repositories that you trust."""

    dequantize: bool = False
    """Turn weights that are stored in FP8, MXFP4 or compressed-tensors into plain ones while they are loaded;
    `quantization` then stores them as it would any others."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the 16-bit parts and of the computation on dequantized weights. `auto`: bfloat16 where the
    GPU has it, else float16; float32 on CPU."""

    attn_implementation: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Attention kernel, as in `from_pretrained`."""

    chat_template: str | None = None
    """Jinja file that replaces the tokenizer's chat template."""


class LoraSection(Section):
    """Low-rank adapters on the frozen base model (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = Field(16, ge=1, le=4096)
    """Inner dimension of the update B @ A. Adapter size grows linearly with it."""

    lora_alpha: Number = Field(32.0, gt=0, le=65_536)
    """The update is scaled by lora_alpha / r (by lora_alpha / sqrt(r) with `use_rslora`)."""

    lora_dropout: Number = Field(0.05, ge=0, lt=1)
    """Probability of zeroing an input element of the adapter while training."""

    target_modules: Literal["all-linear"] | Names = "all-linear"
    """Modules that get an adapter: every linear layer except the output head, or a list of names; fused experts are
    named by their weights, such as `experts.gate_up_proj`. Of a base with a vision tower only layers that text goes
    through get one."""

    modules_to_save: Names = ()
    """Modules trained in full and saved with the adapter, e.g. `[embed_tokens]`."""

    use_dora: bool = False
    """Weight-decomposed adaptation: learn the columns' magnitude apart (arXiv:2402.09353)."""

    use_qalora: bool = False
    """QA-LoRA (arXiv:2309.14717): the adapter gets the mean of its inputs over each group of weights, so that its
    update goes into the groups' offsets and the merged model stays in few bits without loss. Needs
    `quantization.method: int`."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r), stable at high rank (arXiv:2312.03732)."""

    init_lora_weights: Literal["default", "gaussian", "loftq", "calibrated", "pissa"] = "default"
    """How A and B start. default: B = 0. loftq: B @ A makes up for the quantization error (arXiv:2310.08659).
    calibrated: the same, with the error weighted by the inputs that the layer gets from this run's rows
    (arXiv:2501.18475). pissa: B @ A is the principal part of the weight, the base keeps the rest (arXiv:2404.02948)."""

    autocast_adapter_dtype: bool = True
    """Keep adapter weights in float32 and compute with them in the model's dtype, as PEFT does. false: store them
    in the model's dtype, as the QLoRA paper does; half the adapter memory, coarser updates."""

    loraplus_lr_ratio: Annotated[float, Field(ge=1, le=1024), BeforeValidator(as_float)] | None = None
    """LoRA+ (arXiv:2402.12354): B learns at this many times `training.learning_rate`, which stays that of A and is
    the one in metrics.jsonl. The paper recommends about 16; not given: one rate for both."""


class TrainingSection(Section):
    """The optimization. Defaults follow the QLoRA paper (appendix B) and current practice for 7B models."""

    learning_rate: Number = Field(2e-4, gt=0, le=1)
    """Peak learning rate."""

    weight_decay: Number = Field(0.01, ge=0, le=1)
    """Decoupled weight decay of AdamW."""

    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """Shape of the learning rate after the warm-up."""

    warmup_ratio: Number = Field(0.03, ge=0, lt=1)
    """Share of the steps in which the learning rate rises from 0."""

    max_grad_norm: Number = Field(0.3, ge=0, le=1_000_000)
    """Gradients are scaled down to this L2 norm; 0 turns clipping off."""

    num_train_epochs: Annotated[float, Field(gt=0, le=10_000), BeforeValidator(as_float)] | None = None
    """Passes over the training rows; 3 when neither this nor `max_steps` is given."""

    max_steps: int | None = Field(None, ge=1, le=1_000_000_000)
    """Optimizer steps, instead of `num_train_epochs`."""

    per_device_train_batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = 4
    """Rows in one forward pass on each device. `auto`: as many of a step's rows as fit, and
    `gradient_accumulation_steps` is then the number of a step's rows."""

    gradient_accumulation_steps: int = Field(4, ge=1, le=65_536)
    """Forward passes that add up to one optimizer step."""

    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: far less memory, up to half more time."""

    activation_offloading: bool = False
    """Keep in CPU memory what the backward pass will need, and bring it back when it does: less GPU memory at the cost
    of transfers. Needs a GPU."""

    neftune_noise_alpha: Annotated[float, Field(gt=0, le=1000), BeforeValidator(as_float)] | None = None
    """NEFTune (arXiv:2310.05914): noise on the embeddings while training, evenly between plus and minus this number
    over sqrt(tokens of the document x hidden size). The paper tries 5, 10 and 15; none when not given."""

    optim: Literal["paged_adamw_8bit", "adamw_8bit", "paged_adamw_32bit", "adamw_torch", "adamw_torch_fused"] = (
        "paged_adamw_8bit"
    )
    """Optimizer. Paged ones move their state to CPU memory when the GPU is full; on CPU they run unpaged."""

    adam_beta1: Number = Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""

    adam_beta2: Number = Field(0.999, ge=0, lt=1)
    """Decay of the second moment."""

    adam_epsilon: Number = Field(1e-8, gt=0, le=1)
    """Added to the denominator of the update."""

    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of weights, dropout, data order and splits."""

    logging_steps: int = Field(1, ge=1, le=1_000_000_000)
    """Optimizer steps between two lines of metrics.jsonl."""

    save_strategy: Literal["epoch", "steps", "no"] = "epoch"
    """When checkpoints are written. The last step and a stop by signal always write one."""

    save_steps: int | None = Field(None, ge=1, le=1_000_000_000)
    """Optimizer steps between two checkpoints, with `save_strategy: steps`."""

    save_total_limit: int = Field(2, ge=1, le=100_000)
    """Checkpoints kept; older ones are deleted after a newer one is complete."""

    early_stopping_patience: int | None = Field(None, ge=1, le=1_000_000)
    """End the run after this many evaluations in a row without a new lowest eval loss. Such a run is finished; its last
    lines and its manifest say at which step it ended and why."""

    early_stopping_threshold: Number = Field(0.0, ge=0, le=1000)
    """How far below the lowest eval loss so far, in nats, a new one must be to count for `early_stopping_patience`."""

    load_best_model_at_end: bool = False
    """Make `adapter/` of the step with the lowest eval loss, not of the last step. Each new lowest eval loss saves a
    checkpoint, which is kept beside those of `save_total_limit`."""

    @property
    def epochs(self) -> float:
        """Passes over the data; `max_steps`, where given, ends the run instead."""
        return self.num_train_epochs or DEFAULT_EPOCHS

    @property
    def length(self) -> tuple[float, str]:
        """When the run ends, with its unit."""
        return (self.epochs, "epochs") if self.max_steps is None else (self.max_steps, "steps")

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step on each device."""
        return self.rows_at_once * self.num_passes

    @property
    def rows_at_once(self) -> int:
        """Rows of a forward pass where memory does not matter: with `auto` all rows of a step."""
        batch_size = self.per_device_train_batch_size
        return self.gradient_accumulation_steps if batch_size == "auto" else batch_size

    @property
    def num_passes(self) -> int:
        """Forward passes of `rows_at_once` that add up to an optimizer step."""
        return 1 if self.per_device_train_batch_size == "auto" else self.gradient_accumulation_steps


class TrackingSection(Section):
    """Experiment trackers that get the metrics beside metrics.jsonl."""

    report_to: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...], BeforeValidator(as_tuple)
    ] = ()
    """Experiment trackers; each must be installed, for example with `pip install wandb`."""

    project: str | None = None
    """Project (W&B, Trackio) or experiment (MLflow) that the run belongs to."""


class Recipe(Section):
    """One fine-tuning run."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Name of the run and of its directory `runs/<name>`; the recipe's file name when not given."""

    model: ModelSection
    """The pretrained model that stays frozen."""

    quantization: QuantizationSection | None = None
    """Storage of the frozen weights; left out, they stay as the base has them; write `quantization: {}` for NF4."""

    lora: LoraSection = LoraSection()
    """The adapter that is trained."""

    data: DataSection
    """What it is trained on."""

    training: TrainingSection = TrainingSection()
    """How it is trained."""

    eval: EvalSection = EvalSection()
    """How it is measured."""

    tracking: TrackingSection = TrackingSection()
    """Where its metrics go."""

    @property
    def is_base_calibrated(self) -> bool:
        """Whether the run's own rows decide how its base is rounded, so that no other run has it."""
        return self.quantization is not None and self.quantization.is_calibrated
