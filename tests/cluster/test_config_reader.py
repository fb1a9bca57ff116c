"""The configuration says exactly what is wrong."""

from pathlib import Path

import pytest

from cluster.config import Edge, MantaConfig
from cluster.config_reader import read_config
from engine.config import DType
from engine.errors import ConfigError


def test_defaults_serve_the_demo_model_with_two_replicas() -> None:
    config = read_config()
    assert config == MantaConfig()
    assert [(model.served_name, model.replicas) for model in config.models] == [("demo", 2)]
    assert Path(config.models[0].location).name == "demo_model"
    assert config.gateway.host == "127.0.0.1"


def test_one_model_may_be_written_flat_and_words_are_converted() -> None:
    config = read_config({"model": "org/tiny-llama", "replicas": "3"}, overrides=["engine.dtype=float32"])
    model = config.models[0]
    assert (model.served_name, model.replicas, model.engine.dtype) == ("tiny-llama", 3, DType.FLOAT32)


def test_file_then_settings_then_overrides(tmp_path: Path) -> None:
    file = tmp_path / "manta.yaml"
    file.write_text("gateway: {port: 1, host: 127.0.0.2}\nmodels: [{model: a, replicas: 4}]\n")
    config = read_config({"replicas": 5}, file=file, overrides=["gateway.port=9", "gateway.edge=direct"])
    assert (config.gateway.port, config.gateway.host, config.gateway.edge) == (9, "127.0.0.2", Edge.DIRECT)
    assert (config.models[0].model, config.models[0].replicas) == ("a", 5)


def test_overrides_reach_one_of_several_models() -> None:
    models = {"models": [{"model": "a"}, {"model": "b"}]}
    assert read_config(models, overrides=["models.1.replicas=7"]).models[1].replicas == 7
    with pytest.raises(ConfigError, match=r"which model\? write models\.0\.replicas=7"):
        read_config(models, overrides=["replicas=7"])


@pytest.mark.parametrize(
    ("settings", "overrides", "words"),
    [
        ({"gateway": {"prot": 1}}, [], ["gateway.prot", "1", "did you mean 'port'"]),
        ({"gatway": {}}, [], ["gatway", "did you mean 'gateway'"]),
        ({"gateway": {"port": 70000}}, [], ["gateway.port", "70000", "<= 65535"]),
        ({"models": [{"engine": {"dtype": "fp7"}}]}, [], ["models[0].engine.dtype", "'fp7'", "use one of auto"]),
        ({"models": [{"engine": {"block_sise": 8}}]}, [], ["models[0].engine.block_sise", "'block_size'"]),
        ({"models": []}, [], ["models", "name at least one model"]),
        ({"models": [{"model": "x/a"}, {"model": "y/a"}]}, [], ["'a'", "give each its own"]),
        ({"model": "a", "models": []}, [], ["model", "'a'", "inside an entry of `models`"]),
        ({"replicas": 0}, [], ["replicas", "0", ">= 1"]),
        ({"engine": {"kv_cache_tokens": 3}}, [], ["kv_cache_tokens", "3", "at least one block of 32"]),
        ({"model": "demo", "chain": {"step_s": 1}}, [], ["chain", "is for the model `chain`, not 'demo'"]),
        ({"engine": {"max_batched_tokens": 8}}, [], ["max_batched_tokens", "8", "at least max_num_seqs = 64"]),
        ({"gateway": {"tenant_header": "X-T"}}, [], ["gateway.tenant_header", "anybody could name any tenant"]),
        ({"gateway": {"tenant_header": "T", "edge": "direct", "host": "0.0.0.0"}}, [], ["listen on 127.0.0.1"]),
        (
            {"gateway": {"host": "0.0.0.0"}},
            [],
            ["gateway.host", "'0.0.0.0'", "set auth.api_keys, or listen on 127.0.0.1"],
        ),
        ({}, ["port"], ["--set", "write key=value"]),
        ({}, ["gateway.port=1", "gateway.port.x=1"], ["--set", "holds a value"]),
        ({}, ["models.3.replicas=1"], ["--set", "no entry '3'"]),
    ],
)
def test_errors_name_key_value_and_remedy(settings: dict[str, object], overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_config(settings, overrides=overrides)
    for word in words:
        assert word in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_config(file=tmp_path / "nowhere.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        read_config(file=broken)
    broken.write_text("just words")
    with pytest.raises(ConfigError, match="must hold a mapping"):
        read_config(file=broken)
