"""Which file of a directory is the checkpoint, and where its hyperparameters are."""

from __future__ import annotations

import pytest
import raw_mindspore as raw
import yaml
from test_mindspore_source import assert_weights
from tiny_hf import config_of, random_weights, shapes_of
from tiny_mindspore import in_mindformers, mindformers_yaml, write

from converter.sources.options import SourceOptions
from converter.sources.registry import open_source
from qllama.errors import ConversionError


@pytest.fixture
def weights():
    return random_weights(shapes_of(config_of()), "bf16")


@pytest.fixture
def tags(weights):
    return in_mindformers(weights)


class TestDirectories:
    """What lies in a directory is found, or explained."""

    def fill(self, directory, *names):
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(b"")

    def test_one_checkpoint_is_opened(self, tmp_path, tags, weights):
        write(tmp_path, raw.checkpoint(tags))
        self.fill(tmp_path, "ckpt_strategy.ckpt")
        assert_weights(open_source(tmp_path), weights)

    def test_one_rank_is_looked_into(self, tmp_path, tags, weights):
        write(tmp_path / "rank_0", raw.checkpoint(tags))
        assert_weights(open_source(tmp_path), weights)

    def test_steps_of_a_training_are_explained(self, tmp_path):
        self.fill(tmp_path, *(f"llama2_7b_rank_0-{step}.ckpt" for step in ("1_90", "2_5", "1_100")))
        expected = "3 checkpoints of one training .* the last is llama2_7b_rank_0-2_5.ckpt"
        with pytest.raises(ConversionError, match=expected):
            open_source(tmp_path)

    @pytest.mark.parametrize(
        "names",
        [
            ("rank_0/a.ckpt", "rank_1/a.ckpt"),
            ("llama_rank_0-1_5.ckpt", "llama_rank_1-1_5.ckpt"),
        ],
    )
    def test_ranks_of_a_parallel_training_are_explained(self, tmp_path, names):
        self.fill(tmp_path, *names)
        expected = "the files of 2 ranks .* merge them with mindspore.transform_checkpoints"
        with pytest.raises(ConversionError, match=expected):
            open_source(tmp_path)

    def test_several_models_are_listed(self, tmp_path):
        self.fill(tmp_path, "b.ckpt", "a.ckpt")
        with pytest.raises(ConversionError, match=r"give the path of one: a\.ckpt, b\.ckpt"):
            open_source(tmp_path)

    def test_directory_without_checkpoints_is_refused(self, tmp_path):
        with pytest.raises(ConversionError, match=r"expected a \.ckpt file in it, found none"):
            open_source(tmp_path, SourceOptions(format="mindspore"))


class TestConfigurations:
    """Where hyperparameters come from, and what is said when they do not."""

    @pytest.fixture
    def path(self, tmp_path, tags):
        return write(tmp_path, raw.checkpoint(tags), False)

    def test_no_config_is_refused_with_advice(self, path):
        with pytest.raises(ConversionError, match=r"no config\.json beside it; give --config"):
            open_source(path)

    def test_several_yaml_files_are_refused_with_advice(self, path):
        for name in ("predict.yaml", "finetune.yml"):
            path.with_name(name).write_text(yaml.safe_dump(mindformers_yaml({})))
        with pytest.raises(ConversionError, match="there are 2 YAML files beside it; give --conf"):
            open_source(path)
        options = SourceOptions(config=path.with_name("finetune.yml"))
        assert open_source(path, options).config.hidden_size == 64

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a: [", "expected YAML: while parsing"),
            ("!!python/object:os.system {}", "expected YAML: could not determine a constructor"),
            ("- a", r"expected a YAML object, found \['a'\]"),
            ("a: 1", r"model_config\.type is missing"),
            ("a" * (1 << 20) + "a", "more than 1 MiB"),
        ],
    )
    def test_malformed_yaml_is_one_clear_line(self, path, text, expected):
        config = path.with_name("x.yaml")
        config.write_text(text)
        with pytest.raises(ConversionError, match=expected) as caught:
            open_source(path)
        assert str(caught.value).startswith(f"{config}: ")
        assert "\n" not in str(caught.value)
