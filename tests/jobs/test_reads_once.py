"""Planning reads the configuration of a checkpoint alone; the job reads the file once."""

import subprocess
import sys

import pytest
from support.base import ROOT

from ddpm.runner.checkpoints import summary
from ddpm.runner.safe_io import torch_archive

CLASSIFIER = [
    *("job=train_classifier", "model=classifier", "model.widths=[8,8]", "schedule=linear"),
    *("hardware=cpu", "tracker=local", "job.max_steps=1", "job.batch_size=4"),
]


@pytest.fixture
def reads(monkeypatch):
    """The files whose tensors are read, in order."""
    files = []

    def counted(path, original=torch_archive.read_archive):
        files.append(path.parent.parent.name)
        return original(path)

    monkeypatch.setattr("ddpm.runner.checkpoints.checkpoint.read_archive", counted)
    return files


def test_sampling_reads_its_checkpoint_once(run, tiny, reads):
    words = ("job=sample", f"checkpoint={tiny}", "tracker=local", "job.num_samples=1")
    status, out, err = run(*words, "output_dir=samples")
    assert status == 0, out + err
    assert reads == ["run"]


@pytest.mark.slow
def test_guidance_reads_the_classifier_once(run, tiny, reads, tmp_path):
    status, out, err = run(*CLASSIFIER, "output_dir=classifier")
    assert status == 0, out + err
    words = ("job=sample", f"checkpoint={tiny}", "tracker=local", "job.num_samples=1")
    guide = ("guidance=classifier", f"guidance.classifier={tmp_path / 'classifier'}")
    reads.clear()
    status, out, err = run(*words, *guide, "job.labels=[1]", "output_dir=samples")
    assert status == 0, out + err
    assert sorted(reads) == ["classifier", "run"]


def test_summary_does_not_import_torch(tiny):
    code = (
        "import sys; from pathlib import Path; from ddpm.runner.checkpoints import summary\n"
        "found = summary.read(Path(sys.argv[1]))\n"
        "print(found.step, found.hparams['choices']['model'], 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tiny)]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["6", "convnet", "False"]


def test_summary_equals_the_content_of_the_checkpoint(tiny):
    from ddpm.runner.checkpoints import checkpoint

    file, state = checkpoint.find(tiny)
    found = summary.read(tiny)
    assert found == (file, state["step"], state["run_id"], state["hparams"])


def test_older_checkpoint_is_used_if_a_tensor_is_damaged(run, tiny):
    newest = tiny / "checkpoints" / "step-0000006.pt"
    data = bytearray(newest.read_bytes())
    start = data.index(b"data/0") + 200  # in the bytes of the first tensor, past its padding
    data[start] ^= 255
    newest.write_bytes(bytes(data))
    words = ("job=sample", f"checkpoint={tiny}", "tracker=local", "job.num_samples=1")
    status, out, err = run(*words, "output_dir=samples")
    assert status == 0, out + err
    assert "Passed over" in out
    assert "step-0000004.pt" in out
