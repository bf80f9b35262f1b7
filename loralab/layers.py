"""The names of the linear layers that adapters sit on."""

from __future__ import annotations

# The linear layers of a block, in the order in which it uses them.
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = ("all-linear",)  # peft's word for every linear layer but the output layer, whatever a base calls them
TARGETS = {
    "q": ("q_proj",),
    "k": ("k_proj",),
    "v": ("v_proj",),
    "o": ("o_proj",),
    "qv": ("q_proj", "v_proj"),
    "qkvo": ATTENTION,
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "all": LINEAR,
}
