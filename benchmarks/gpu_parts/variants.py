"""What is tried in a step of training, and in sampling: every option of conf/."""

from dataclasses import dataclass
from pathlib import Path

from gpu_parts.configuration import SMALL, has_key, job_of, variants

SAMPLING_STEPS = 4
BATCH = 8  # images
PUBLISHED_BATCH = 2  # in a step of a published set-up
GUIDES = ("guidance.classifier", "guidance.weak")  # keys that name a run
# What options of conf/ cannot be without.
LISTED = ",".join(["0.1"] * 50)
REQUIRED = {
    "schedule=listed": ("schedule.T=50", f"schedule.betas=[{LISTED}]"),
    "experiment=folder256": (f"data.root={Path(__file__).parents[1] / 'pictures'}",),
}


@dataclass(frozen=True)
class Variant:
    """What is tried: the words that name it, and the words that it is tried with."""

    words: tuple[str, ...]
    around: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join(self.words)

    @property
    def option(self) -> str:
        return self.words[0].partition("=")[2]

    @property
    def is_published(self) -> bool:
        """Whether it is a whole published set-up, with a network of full size."""
        return self.words[0].startswith("experiment=")

    @property
    def batch(self) -> int:
        return PUBLISHED_BATCH if self.is_published else BATCH

    @property
    def guide(self) -> str | None:
        """The key that names the run by which the sampling is guided, if there is one."""
        if not self.words[0].startswith("guidance="):
            return None
        return next((key for key in GUIDES if has_key("guidance", self.option, key)), None)


def schedules(around: tuple[str, ...]) -> list[Variant]:
    chosen = variants("schedule")
    return [Variant(words, (*around, *REQUIRED.get(words[0], ()))) for words in chosen]


def training_variants() -> list[Variant]:
    found = [
        Variant(words, (f"job={job_of(words[0].partition('=')[2])}",))
        for words in variants("model")
    ]
    for group in ("objective", "weighting", "optimizer"):
        found += [Variant(words, SMALL) for words in variants(group)]
    found += schedules((*SMALL, "objective=v"))
    found.append(Variant(("data.conditional=true",), SMALL))
    published = variants("experiment")
    return found + [Variant(words, REQUIRED.get(words[0], ())) for words in published]


def sampling_variants() -> list[Variant]:
    few = f"sampler.steps={SAMPLING_STEPS}"
    ancestral = (*SMALL, "sampler=ddpm", few)
    found = []
    for sampler in [Variant(words) for words in variants("sampler")]:
        short = (few,) if has_key("sampler", sampler.option, "sampler.steps") else ()
        found.append(Variant(sampler.words, (*SMALL, "objective=v", *short)))
    for guidance in [Variant(words) for words in variants("guidance")]:
        labels = () if guidance.guide == "guidance.classifier" else ("data.conditional=true",)
        found.append(Variant(guidance.words, (*ancestral, "objective=v", *labels)))
    found += [Variant(words, ancestral) for words in variants("objective")]
    return found + schedules((*ancestral, "objective=v"))
