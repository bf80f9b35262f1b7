import pytest
import torch

from loralab.shapes import adapter_shape
from tests.conftest import ATTENTION, CONFIGS

WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("config", "rank", "targets", "trainable", "parameters"),
    [
        ("smollm2-135m", 16, ["q_proj", "v_proj"], 921_600, 135_436_608),
        ("smollm2-135m", 16, ATTENTION, 1_843_200, 136_358_208),
        ("smollm2-135m", 64, [*ATTENTION, "gate_proj", "up_proj", "down_proj"], 19_537_920, 154_052_928),
        ("qwen2.5-0.5b", 16, ATTENTION, 2_162_688, 496_195_456),
        ("qwen2.5-0.5b", 4, [*ATTENTION, "gate_proj", "up_proj", "down_proj"], 2_199_552, 496_232_320),
    ],
)
def test_shapes_are_exact_on_the_true_configs(config, rank, targets, trainable, parameters):
    shape = adapter_shape(str(CONFIGS / config), rank, tuple(targets))
    assert (shape.trainable, shape.parameters) == (trainable, parameters)


def test_the_file_size_is_that_of_peft(honest, base):
    shape = adapter_shape(base.source, 16, tuple(ATTENTION))
    assert shape.file_bytes(torch.float32) == (honest / WEIGHTS).stat().st_size
    large = adapter_shape(str(CONFIGS / "qwen2.5-0.5b"), 16, tuple(ATTENTION))
    assert (large.file_bytes(torch.float32), large.file_bytes(torch.float16)) == (8_676_008, 4_350_584)
