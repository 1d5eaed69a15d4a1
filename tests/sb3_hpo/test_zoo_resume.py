"""``sb3-hpo train --resume``: a run goes on from its newest checkpoint as if it had never stopped."""

import json
import shutil

import pytest
import torch

from sb3_hpo import HPO, HybridPPO
from sb3_hpo.zoo import main

ID = "HybridInventory-v0"
N_ITERATIONS = 8
SETTINGS = {
    "hpo": ["n_envs:4", "normalize:True", "policy_kwargs:dict(net_arch=[8])"],
    "hybrid_ppo": ["n_envs:4", "n_steps:5", "batch_size:20", "policy_kwargs:dict(net_arch=[8])"],
}


def train(algo, *arguments):
    size = ["--env-kwargs", "n_items:2", "horizon:5", "-n", str(N_ITERATIONS * 20)]
    watch = ["--eval-freq", "40", "--checkpoint-freq", "2"]
    main(["train", "--algo", algo, "--env", ID, *size, *watch, "-params", *SETTINGS[algo], *arguments])


@pytest.fixture(scope="module", params=["hpo", "hybrid_ppo"])
def whole(request, tmp_path_factory):
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(request.param)
    return folder / "logs" / request.param / f"{ID}_1"


def weights(file):
    cls = HPO if file.parent.parent.name == "hpo" else HybridPPO
    return cls.load(file).policy.state_dict()


def test_a_resumed_run_ends_with_the_weights_and_the_best_model_of_an_unbroken_one(whole, tmp_path, capsys):
    stopped = shutil.copytree(whole, tmp_path / whole.parent.name / whole.name)
    newest = sorted((stopped / "checkpoints").glob("*.pt"))[-1]
    newest.unlink()  # as if killed before it was written
    for name in (f"{ID}.zip", "best_model.zip"):
        (stopped / name).unlink()
    main(["train", "--resume", str(stopped)])
    assert f"Resumed from {sorted(stopped.glob('checkpoints/*.pt'))[0].parent}" in capsys.readouterr().out
    resumed, unbroken = weights(stopped / f"{ID}.zip"), weights(whole / f"{ID}.zip")
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    assert (stopped / "checkpoints" / newest.name).exists()


def test_a_run_without_checkpoints_has_none_to_resume(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train("hpo", "--checkpoint-freq", "0")
    assert not list(tmp_path.rglob("checkpoints"))
    assert "--resume: there is no run with checkpoints in" in complaint(capsys, "train", "--resume", "logs/hpo/" + f"{ID}_1")


def complaint(capsys, *arguments):
    """The one line on stderr with which the command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_resumed_is_named_in_one_line(whole, tmp_path, capsys):
    stopped = shutil.copytree(whole, tmp_path / whole.name)
    command = stopped / "checkpoints" / "command.json"
    assert "--resume stands alone" in complaint(capsys, "train", "--resume", str(stopped), "-n", "5")
    assert "nowhere" in complaint(capsys, "train", "--resume", "nowhere")
    arguments = json.loads(command.read_text())
    command.write_text(json.dumps([*arguments, "-params", "gamma:0.5"]))
    kept = {file.name: file.read_bytes() for file in stopped.glob("checkpoints/*.pt")}
    assert "gamma was 0.99 there and is 0.5 here" in complaint(capsys, "train", "--resume", str(stopped))
    assert {file.name: file.read_bytes() for file in stopped.glob("checkpoints/*.pt")} == kept
    command.write_text("[")
    assert "command.json cannot be read" in complaint(capsys, "train", "--resume", str(stopped))


def test_every_checkpoint_that_is_damaged_is_named(whole, tmp_path, capsys):
    stopped = shutil.copytree(whole, tmp_path / whole.name)
    files = sorted(stopped.glob("checkpoints/*.pt"))
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="going back to the checkpoint before it"):
        assert "can be read; move them away to start anew" in complaint(capsys, "train", "--resume", str(stopped))
    assert sorted(stopped.glob("checkpoints/*.pt")) == files
