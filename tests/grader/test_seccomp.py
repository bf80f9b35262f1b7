"""The filter of system calls: libseccomp's, made from names, decides as the one from the project's own numbers."""

from __future__ import annotations

import errno
import importlib
import platform
import socket
import struct
import types
from itertools import product

import pytest

from grader.sandbox import seccomp

REFUSED, ALLOWED = seccomp.ERROR | errno.EPERM, seccomp.ALLOW
X32 = 0x40000000
CONDITIONAL = ("socket", "socketpair", "setsockopt", "close_range", "clone")


def binding():
    for name in seccomp.BINDINGS:
        try:
            return importlib.import_module(name)
        except (ImportError, RuntimeError):  # none, or no library to bind to
            continue
    return None


def decide(program: bytes, number: int, arguments: tuple[int, ...], architecture: int) -> int:
    """What the kernel would do with a call, by running the filter as the kernel does."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number, architecture, 0, *padded)
    steps = [struct.unpack_from("=HBBI", program, place) for place in range(0, len(program), 8)]
    at = value = 0
    while True:
        code, if_true, if_false, k = steps[at]
        at += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("=I", data, k)
            case 0x54:
                value &= k
            case 0x05:
                at += k
            case 0x06:
                return k
            case 0x15 | 0x25 | 0x35 | 0x45:
                holds = {0x15: value == k, 0x25: value > k, 0x35: value >= k, 0x45: bool(value & k)}[code]
                at += if_true if holds else if_false
            case _:
                raise AssertionError(f"a step of a kind that is not known here: {code:#x}")


needs_table = pytest.mark.skipif(platform.machine() not in seccomp.MACHINES, reason="no list of system calls")
needs_binding = pytest.mark.skipif(binding() is None, reason="libseccomp has no Python binding here")


def architecture() -> int:
    return seccomp.MACHINES[platform.machine()][1]


@needs_table
@needs_binding
def test_both_filters_decide_alike_on_every_system_call():
    by_name, by_number = seccomp.by_name(binding()), seccomp.by_number()
    families = [(family, 3, protocol) for family in range(50) for protocol in (0, 1, 16)]
    options = [(3, *rest) for rest in product((0, 1, 6, socket.SOL_SOCKET), (0, 1, socket.SO_SNDBUF, 8, 32))]
    flags = [(0, 0, flags) for flags in range(8)]
    bits = (0, seccomp.NEW_USER, seccomp.THREAD, seccomp.SAME_FILES, 0x100, 0x11)
    threads = [(one | two | three, 0, 0) for one, two, three in product(bits, bits, bits)]
    arguments = [(), *families, *options, *flags, *threads]
    for number in range(600):
        for given in arguments:
            decisions = {decide(program, number, given, architecture()) for program in (by_name, by_number)}
            assert len(decisions) == 1, (number, given, decisions)
    for number in (0, 41, X32, X32 + 41, X32 + 520):
        assert decide(by_name, number, (), architecture() ^ 1) == decide(by_number, number, (), architecture() ^ 1)
        assert (
            decide(by_name, number | X32, (), architecture())
            == REFUSED
            == decide(by_number, number | X32, (), architecture())
        )


@needs_table
@needs_binding
def test_what_the_kernel_does_not_look_at_opens_no_way_around_either_filter():
    """The upper halves of an int argument: the kernel drops them, so a filter must, too."""
    column, high = seccomp.MACHINES[platform.machine()][0], 1 << 40
    refused = [
        (seccomp.SOCKET, (high | socket.AF_INET, 1, 0)),
        (seccomp.SOCKET, (high | seccomp.INTERFACES, 3, high | 15)),
        (seccomp.SET_OPTION, (3, high | socket.SOL_SOCKET, high | socket.SO_SNDBUF)),
        (seccomp.CLONE, (high | seccomp.NEW_USER,)),
    ]
    for program in (seccomp.by_name(binding()), seccomp.by_number()):
        for numbers, arguments in refused:
            assert decide(program, numbers[column], arguments, architecture()) != ALLOWED


@needs_table
def test_the_table_refuses_what_it_lists_and_lets_the_rest_through():
    column, program = seccomp.MACHINES[platform.machine()][0], seccomp.by_number()
    for numbers in seccomp.REFUSED.values():
        assert decide(program, numbers[column], (), architecture()) == REFUSED
    assert decide(program, seccomp.CLONE3, (), architecture()) == seccomp.ERROR | errno.ENOSYS
    assert decide(program, seccomp.SOCKET[column], (socket.AF_UNIX, 1, 0), architecture()) == ALLOWED
    for family, protocol, lets in (
        (2, 0, False),
        (10, 0, False),
        (16, 0, True),
        (16, 15, False),
        (0, 0, False),
        (40, 0, False),
    ):
        decision = decide(program, seccomp.SOCKET[column], (family, 3, protocol), architecture())
        assert decision == (ALLOWED if lets else seccomp.ERROR | errno.EAFNOSUPPORT), family
    for option, lets in ((socket.SO_SNDBUF, False), (socket.SO_RCVBUF, False), (socket.SO_REUSEADDR, True)):
        decision = decide(program, seccomp.SET_OPTION[column], (3, socket.SOL_SOCKET, option), architecture())
        assert decision == (ALLOWED if lets else REFUSED), option
    assert decide(program, seccomp.CLONE[column], (0x11,), architecture()) == ALLOWED
    assert decide(program, 0, (), architecture() ^ 1) == REFUSED


def test_a_binding_that_does_not_know_a_call_leaves_it_to_the_table(monkeypatch):
    broken = types.SimpleNamespace(ERRNO=lambda number: number, ALLOW=0)
    monkeypatch.setattr(importlib, "import_module", lambda name: broken)
    assert seccomp.program() == seccomp.by_number()


def test_without_a_binding_or_a_table_there_is_no_filter(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(seccomp, "BINDINGS", ())
    assert seccomp.program() is None
