"""`manta plan` from its arguments to its output, on the demo model and on a config without weights."""

import json
from pathlib import Path

import pytest
import yaml

from cluster.config_reader import read_config
from deployments.cli import main
from deployments.commands.plan import amount

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
}


@pytest.fixture
def llama_8b(tmp_path: Path) -> str:
    """A folder that holds a config.json and nothing else."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return str(tmp_path)


def test_a_config_is_enough(llama_8b: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", llama_8b, "--gpu", "h100", "--gpus-per-node", "2", "--concurrency", "8", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["model"] == {
        "name": llama_8b, "architecture": "LlamaForCausalLM", "dtype": "bfloat16", "num_parameters": 8_030_261_248,
    }  # fmt: skip
    grids = [(each["tensor_parallel"], each["pipeline_parallel"], each["replicas"]) for each in shown["candidates"]]
    assert grids == [(1, 1, 2), (2, 1, 1), (1, 2, 1)]
    weights = 2 * 8_030_261_248
    assert weights < shown["candidates"][0]["memory"]["weights"] < weights + 1024  # frequencies of positions
    assert shown["candidates"][0]["concurrency"] == 53


def test_no_number_is_cut_off_in_80_columns(
    llama_8b: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["plan", llama_8b, "--gpu", "h200", "--nodes", "64"]) == 0
    out = capsys.readouterr().out
    assert "replicas" in out
    assert "\u2026" not in out


def test_the_lines_to_paste_are_a_configuration(llama_8b: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", llama_8b, "--gpu", "l40s", "--nodes", "2", "--gpus-per-node", "1"]) == 0
    out = capsys.readouterr().out
    lines = yaml.safe_load(out[out.index("\nmodel: ") :])
    config = read_config(lines).models[0]
    assert (config.tensor_parallel, config.pipeline_parallel, config.replicas) == (1, 2, 1)
    assert config.engine.max_model_len == 8192
    assert "on 2 nodes" in " ".join(out.split())


def test_the_demo_model_on_this_host(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--memory", "2GiB", "--gpus-per-node", "3", "--concurrency", "2"]) == 0
    out = capsys.readouterr().out
    assert "3.5 million parameters" in out
    assert "3 x 1: 8 attention heads % tensor_parallel = 3 is 2, not 0" in " ".join(out.split())
    assert read_config(yaml.safe_load(out[out.index("\nmodel: ") :])).models[0].engine.kv_cache_tokens == 2048


def test_many_sequences_are_a_configuration_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--memory", "900GiB", "--concurrency", "4096", "--context", "64"]) == 0
    out = capsys.readouterr().out
    engine = read_config(yaml.safe_load(out[out.index("\nmodel: ") :])).models[0].engine
    assert (engine.max_num_seqs, engine.max_batched_tokens) == (4096, 4096)


def test_what_fits_nowhere_is_said_and_fails(llama_8b: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", llama_8b, "--gpu", "a100-80", "--memory", "10GiB", "--gpus-per-node", "1"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "1 x 1: does not fit by" in out
    assert "Nothing fits" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--context", "9000"], "--context = 9000: the model holds 8192 tokens"),
        (["--concurrency", "5000"], "--concurrency = 5000: one engine runs at most 4096"),
        (["--nodes", "0"], "--nodes = 0: give at least 1"),
    ],
)
def test_wishes_that_cannot_be(
    arguments: list[str], message: str, llama_8b: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", llama_8b, "--gpu", "h100", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path)]) == 2
    assert "config.json: missing" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "number"), [("80GiB", 80 << 30), ("3.35TB/s", 3_350_000_000_000), ("5", 5)])
def test_amounts(text: str, number: int) -> None:
    assert amount(text) == number
