"""Which process of a run this one is, as launchers say it."""

from pathlib import Path

import pytest

from hydratune.build.hardware import resolve
from hydratune.config.schema import Config, ConfigError
from hydratune.follow import check_ranks
from hydratune.run.layout import RunDir
from hydratune.run.ranks import TORCHS, Ranks, others_run_dir, take_ranks

TORCHRUN = dict(zip(TORCHS, ["3", "4", "1", "2", "node1", "29400"], strict=True))
SRUN = {
    "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[03-04,9],login",
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1",
}  # fmt: skip


def test_alone_without_a_launcher() -> None:
    job = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}  # of a batch script, which is no step
    assert take_ranks({}) == take_ranks(job) == Ranks()
    assert take_ranks({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}) == Ranks()
    assert take_ranks({"WORLD_SIZE": "1", "PATH": "x"}) == Ranks()


def test_torchruns_variables_are_taken_away_and_given_back() -> None:
    environment = {**TORCHRUN, "PATH": "x", "PMI_SIZE": "4"}
    me = take_ranks(environment)
    assert me == Ranks(3, 4, 1, 2, "node1", 29400)
    assert environment == {"PATH": "x"}
    assert me.variables == TORCHRUN


def test_slurms_variables() -> None:
    me = take_ranks(dict(SRUN))
    assert (me.rank, me.world_size, me.local_rank, me.local_world_size, me.address) == (3, 4, 1, 2, "gpu03")
    assert take_ranks({**SRUN, **TORCHRUN}).address == "node1"  # torchrun in a step of Slurm's
    uneven = {**SRUN, "SLURM_STEP_TASKS_PER_NODE": "1,3", "SLURM_LOCALID": "2"}
    assert take_ranks(uneven).local_world_size == 3


def test_two_steps_listen_at_two_ports() -> None:
    ports = [
        take_ranks({**SRUN, "SLURM_JOB_ID": job, "SLURM_STEP_ID": step}).port
        for job, step in (("77", "0"), ("77", "1"), ("78", "0"))
    ]
    assert len(set(ports)) == 3 and all(10_000 <= port < 30_000 for port in ports)
    assert take_ranks({**SRUN, "MASTER_PORT": "31000"}).port == 31000


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"WORLD_SIZE": None}, "The environment has RANK=3, LOCAL_RANK=1, "),
        ({"RANK": None}, "but no RANK: start the run by torchrun, or unset them."),
        ({"MASTER_PORT": None}, "but no MASTER_PORT: start"),
        ({"RANK": "first"}, "RANK=first in the environment is no number: start the run by torchrun or srun."),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE=-2 in the environment is no number"),
        ({"RANK": "4"}, "Rank 4 of 4, here 1 of 2, is no process that there is"),
        ({"LOCAL_RANK": "2"}, "Rank 3 of 4, here 2 of 2, is no process that there is"),
    ],
)
def test_variables_that_do_not_fit_are_one_sentence(changed: dict[str, str | None], sentence: str) -> None:
    environment = {name: value for name, value in (TORCHRUN | changed).items() if value is not None}
    with pytest.raises(ConfigError) as refused:
        take_ranks(environment)
    assert len(refused.value.sentences) == 1 and sentence in refused.value.sentences[0]


def test_the_command_refuses_them(refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    said = refused("experiment=demo")
    assert said.count("hydratune: ") == 1 and "but no WORLD_SIZE" in said


def test_others_leave_nothing_but_their_part_of_a_checkpoint(tmp_path: Path) -> None:
    real = RunDir(tmp_path / "run")
    with others_run_dir(real.root) as run:
        assert (run.prepared, run.checkpoints) == (real.prepared, real.checkpoints)
        run.train_log.write_text("{}")
        assert tmp_path not in run.train_log.parents and tmp_path not in run.adapter.parents
    assert not run.root.exists() and not real.root.exists()


def test_a_run_goes_on_with_as_many_processes(tmp_path: Path) -> None:
    config = Config(run_dir=str(tmp_path))
    check_ranks(config, ["train"], Ranks(0, 2))  # nothing was trained yet
    checkpoint = tmp_path / "checkpoints" / "checkpoint-1"
    checkpoint.mkdir(parents=True)
    (checkpoint / "rng_state.pth").touch()
    check_ranks(config, ["train"], Ranks())
    with pytest.raises(ConfigError, match=r"by 1 process .* here are 2: start 1, or take another run_dir"):
        check_ranks(config, ["train"], Ranks(0, 2))
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_1.pth")
    check_ranks(config, ["train"], Ranks(0, 2))
    check_ranks(config, ["evaluate"], Ranks())
    with pytest.raises(ConfigError, match="by 2 processes"):
        check_ranks(config, ["train"], Ranks())


def refusals(config: Config) -> list[str]:
    with pytest.raises(ConfigError) as refused:
        resolve(config)
    return list(refused.value.sentences)


def test_weights_in_shards_need_cuda() -> None:
    config = Config()
    config.trainer.fsdp = True
    assert "trainer.fsdp=true needs CUDA, and this machine has none: set trainer.fsdp=false." in refusals(config)


@pytest.mark.parametrize(
    ("processes", "kind", "storage", "optim", "sentence"),
    [
        (1, "none", "uint8", "auto", "and one was started: start the run by launchers/node.sh, or set"),
        (2, "int8", "uint8", "auto", "set quantization=nf4, or trainer.fsdp=false."),
        (2, "nf4", "uint8", "auto", "found uint8: set quantization.bnb_4bit_quant_storage=bfloat16."),
        (2, "none", "uint8", "paged_adamw_32bit", "set trainer.optim=adamw_torch, or trainer.fsdp=false."),
        (2, "nf4", "bfloat16", "auto", None),
    ],
)
def test_what_weights_in_shards_do_not_go_with(
    processes: int, kind: str, storage: str, optim: str, sentence: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)
    monkeypatch.setattr("hydratune.build.hardware.world_size", lambda: processes)
    config = Config()
    config.trainer.fsdp, config.trainer.optim = True, optim
    config.quantization.kind, config.quantization.bnb_4bit_quant_storage = kind, storage
    config.lora.kind = "lora"
    if sentence is None:
        assert (resolve(config).optim, resolve(config).world_size) == (
            "adamw_torch",
            2,
        )  # bitsandbytes' knows no shards
    else:
        said = refusals(config)
        assert len(said) == 1 and sentence in said[0]
