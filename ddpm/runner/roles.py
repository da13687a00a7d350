"""The role of each key and group of a configuration: what depends on it, and what it is kept for.

This is the only list of keys by meaning. Resuming, sampling, sweeps, searches, reports, exports and
team files ask the functions below. A key that is not listed has the role of the group or key that
it stands in: `model.dropout` that of `model`.
"""

from collections.abc import Iterable
from enum import Enum, auto


class Role(Enum):
    """Why a key is in a configuration."""

    PROCESS = auto()  # network, diffusion process and data: a checkpoint brings them along
    TRAINING = auto()  # the other keys that the trained weights depend on
    DRAWING = auto()  # how images are drawn from weights; training uses it for previews
    MEASURING = auto()  # how images are scored
    EXTENT = auto()  # how much is done: steps, images, intervals of previews
    MACHINE = auto()  # where it is computed: the same result, up to rounding
    OPERATION = auto()  # no influence on results: threads, intervals of log lines and checkpoints
    PRESET = auto()  # files that set keys of other groups
    TRACKING = auto()  # where results are shown
    PLACE = auto()  # where data sets and caches lie on this machine
    IMAGES = auto()  # a folder of images: it may move while a run is resumed
    SOURCE = auto()  # the weights that a run starts from
    RECORD = auto()  # written by the program: id, code version, command line
    START = auto()  # of one start alone: not part of the run's configuration


_TRAINING_JOB = (
    *("batch_size", "warmup_steps", "lr_decay", "lr_decay_start", "clip_grad_norm"),
    *("ema_decay", "ema_ramp", "label_dropout"),
)
_OPERATION_JOB = (
    *("num_workers", "log_every", "save_every", "keep_checkpoints", "recompute", "push_to"),
    *("validate_every", "keep_best"),
)

# In the order in which reports name groups.
ROLES = {
    "job": Role.EXTENT,
    **{f"job.{key}": Role.TRAINING for key in _TRAINING_JOB},
    **{f"job.{key}": Role.OPERATION for key in _OPERATION_JOB},
    "experiment": Role.PRESET,
    "data": Role.PROCESS,
    **{f"data.{key}": Role.IMAGES for key in ("root", "path", "shards")},
    "data.data_dir": Role.PLACE,
    "model": Role.PROCESS,
    "schedule": Role.PROCESS,
    "objective": Role.PROCESS,
    "weighting": Role.PROCESS,
    "timesteps": Role.PROCESS,
    "diffusion": Role.PROCESS,  # refers to the parts above
    "optimizer": Role.TRAINING,
    "ema": Role.TRAINING,
    "ema.snapshots": Role.OPERATION,
    "seed": Role.TRAINING,
    "sampler": Role.DRAWING,
    "guidance": Role.DRAWING,
    "augment": Role.TRAINING,
    "features": Role.MEASURING,
    "metric": Role.MEASURING,
    "hardware": Role.MACHINE,
    "hardware.threads": Role.OPERATION,
    "hardware.timeout_minutes": Role.OPERATION,
    "job_data": Role.PRESET,
    "model_data": Role.PRESET,
    "job_model_data_optimizer": Role.PRESET,
    "tracker": Role.TRACKING,
    "team": Role.TRACKING,
    "data_dir": Role.PLACE,
    "checkpoint": Role.SOURCE,
    "init_from": Role.SOURCE,
    "init_weights": Role.TRAINING,
    "init_allow": Role.TRAINING,
    "samples": Role.SOURCE,  # pictures that are scored instead
    "source": Role.SOURCE,  # run and step of the checkpoint
    "classifier_source": Role.SOURCE,
    "weak_source": Role.SOURCE,
    "init_source": Role.RECORD,  # run, step and file of init_from
    "run_id": Role.RECORD,
    "overrides": Role.RECORD,
    "choices": Role.RECORD,  # the chosen options: their keys stand in the configuration
    "code": Role.RECORD,
    "version": Role.RECORD,
    "kind": Role.RECORD,  # of the job
    "pipeline": Role.START,  # refers to parts, for the jobs that draw
    "resume": Role.START,
    "allow_changes": Role.START,
    "output_dir": Role.START,
    "sweep": Role.START,
    "runs": Role.START,
    "scores": Role.START,
    "allow": Role.START,
    "inherited": Role.START,
    "hydra": Role.START,
}
# Groups whose keys stand in a run's configuration as a dictionary.
PARTS = (
    *("model", "data", "schedule", "objective", "weighting", "timesteps", "diffusion", "sampler"),
    *("guidance", "augment", "job", "optimizer", "ema", "hardware", "tracker"),
    *("features", "metric"),
)
PRESETS = tuple(key for key, role in ROLES.items() if role is Role.PRESET)
# The presets that the names of other groups choose.
FOLLOWING_PRESETS = tuple(group for group in PRESETS if group != "experiment")
# What a checkpoint brings along for the jobs that draw from it, and what an export holds.
PROCESS = tuple(key for key, role in ROLES.items() if role is Role.PROCESS)
DRAWING = tuple(key for key, role in ROLES.items() if role is Role.DRAWING)
MEASURING = tuple(key for key, role in ROLES.items() if role is Role.MEASURING)
GROUP_ORDER = tuple(key for key in ROLES if "." not in key)
# Groups that decide what the value of a loss means: losses compare only where these agree.
LOSS_DEPENDS_ON = ("job", "data", "schedule", "objective", "weighting", "timesteps")
# What decides the length of a run, and the values of job.lr_decay with which the learning rate, and
# so the weights, depend on that length.
LENGTH = ("job.max_steps", "job.max_epochs")
DECAYS_BY_LENGTH = ("cosine", "linear")
# What a team's file may set.
TEAM = ("tracker", "data_dir", "hydra.sweep", "hydra.launcher")


def role_of(key: str) -> Role | None:
    """The role of a dotted key or group, or None if the program does not know its root."""
    while key not in ROLES:
        key, dot, _ = key.rpartition(".")
        if not dot:
            return None
    return ROLES[key]


def is_fixed_on_resume(key: str, lr_decay: str) -> bool:
    """Whether resuming must not change a key, because the trained weights depend on it, given the
    run's job.lr_decay."""
    if key in LENGTH:
        return lr_decay in DECAYS_BY_LENGTH
    return role_of(key) in (Role.PROCESS, Role.TRAINING, Role.PRESET)


def is_fixed_by_checkpoint(key: str) -> bool:
    """Whether a checkpoint decides a key for the jobs that draw from it."""
    return role_of(key) is Role.PROCESS or key == "experiment"


def may_move(key: str) -> bool:
    """Whether a key says only where images or data sets lie."""
    return role_of(key) in (Role.PLACE, Role.IMAGES)


def is_of_this_start(key: str) -> bool:
    """Whether an override applies to this start only, and is not merged with an older run."""
    return role_of(key) in (Role.START, Role.SOURCE) or key == "data_dir"


def is_kept(key: str) -> bool:
    """Whether a key belongs into the configuration that a run leaves behind."""
    return role_of(key) is not Role.START and key != "version"


def decides_images(key: str) -> bool:
    """Whether two sampling runs that differ in a key may draw different images."""
    return role_of(key) not in (Role.TRACKING, Role.RECORD, Role.PLACE, Role.START)


def decides_result(key: str) -> bool:
    """Whether two jobs of a sweep that differ in a key may come to different results."""
    return decides_images(key) and role_of(key) is not Role.OPERATION


def is_record(key: str) -> bool:
    """Whether a key only says how a run came about."""
    return role_of(key) is Role.RECORD


def is_setting(key: str) -> bool:
    """Whether reports name a key as a setting of a run, beside its seed. `diffusion` repeats other
    parts, presets are seen in the keys that they set, and metrics in the rulers of scores."""
    ignored = (Role.RECORD, Role.TRACKING, Role.START, Role.PLACE, Role.SOURCE)
    named = role_of(key) not in ignored or key in ("checkpoint", "init_from")
    return named and key.partition(".")[0] not in ("diffusion", "metric", *FOLLOWING_PRESETS)


def within(key: str, places: Iterable[str]) -> bool:
    """Whether a key is one of the places or stands in one."""
    return any(key == place or key.startswith(f"{place}.") for place in places)
