"""Lies in options and in the files of a run, for ``robustness.py``."""

import io
import json

from damage import Random, choose


def options_lie(content: bytes, random: Random, ending: str) -> bytes:
    """Options of a wrong type, unknown options, or text that is neither TOML nor JSON."""
    which = int(random.integers(4))
    options = json.loads(content) if ending == ".json" else None
    if which == 0:
        deep = int(random.integers(1000, 100_000))
        return choose(random, (b"[" * deep, b'{"a":' * deep, b"a = " + b"[" * deep, b"a." * deep + b"b = 1"))
    if which == 1:
        return choose(
            random, (b"", b"[]", b"3", b"null", b"\xff\xfe" + content, content.decode().encode("utf-16"), b"\0" * 99)
        )
    name, value = wrong_option(random)
    if options is not None:
        return json.dumps({**options, name: value}).encode()
    if isinstance(value, dict | None):
        value = [value] if value else "none"
    text = {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), json.dumps(value))
    lines = [line for line in content.decode().splitlines() if line.split(" = ")[0] != name]
    return "\n".join([*lines, f"{name} = {text}"]).encode()


def wrong_option(random: Random) -> tuple[str, object]:
    """An option and a value of a wrong type; or an unknown option."""
    from pyro_vmm.cli.kinds import ARRAYS
    from pyro_vmm.cli.parser import GROUPS
    from pyro_vmm.cli.values import TYPES, Types

    types = Types()
    for add, *_ in GROUPS:
        add(types)
    names = sorted(types.keys() & ARRAYS.options - {"dataset", "data_dir", "label_column"})
    if random.random() < 0.1:
        return choose(random, ("epoch", "", "out", "é", "a" * 1000)), 3
    name = choose(random, names)
    type_, is_list = types[name]
    pool = (
        "abc",
        "3",
        2.5,
        -1,
        True,
        [1],
        ["a"],
        [[1]],
        [None],
        {"a": 1},
        float("nan"),
        float("inf"),
        10**30,
        10**400,
        "\0",
    )
    wrong = [value for value in pool if isinstance(value, list) or is_list or not TYPES[type_][0](value)]
    value = choose(random, wrong)
    if is_list and isinstance(value, list) and all(map(TYPES[type_][0], value)):
        value = 3
    return name, value


# --- files of a run ---


def json_lie(content: bytes, random: Random) -> bytes:
    """The configuration of a run with a wrong or missing option."""
    config = json.loads(content)
    which = int(random.integers(4))
    if which == 0:
        deep = int(random.integers(1000, 100_000))
        return choose(random, (b"[" * deep, b'{"options":' * deep, b"", b"[]", b"{}", b"null", b"\xff" + content))
    if which == 1:
        return json.dumps(
            {**config, "options": choose(random, (None, [], 3, "a", [[1, 2]], {}, [["dataset", 3]]))}
        ).encode()
    if which == 2:
        name = choose(random, sorted(config["options"]))
        config["options"][name] = choose(random, ({}, {"a": 1}, [[]], "\0"))
    else:
        name, value = wrong_option(random)
        config["options"][name] = value
    return json.dumps(config).encode()


def torch_lie(content: bytes, random: Random) -> bytes:
    """A model or a checkpoint with a missing entry, an entry of a wrong type, or a tensor of a wrong shape."""
    import torch

    whole = torch.load(io.BytesIO(content), weights_only=True)
    place, steps = whole, int(random.integers(1, 4))
    for _ in range(steps):
        key = choose(random, sorted(place, key=str))
        if not (isinstance(place[key], dict) and place[key] and random.random() < 0.8):
            break
        place = place[key]
    else:
        key = choose(random, sorted(place, key=str))
    value = place[key]
    if random.random() < 0.3:
        del place[key]
    elif isinstance(value, torch.Tensor):
        shapes = (value[None], value.flatten()[:-1], value.new_zeros(0), torch.cat([value.flatten()] * 2))
        place[key] = choose(random, (*shapes, None, 3, "a", []))
    else:
        others = (None, 3, -1, 1.5, "a", [], [1], {}, {"a": 1}, torch.zeros(2), True, 10**30)
        place[key] = choose(random, [other for other in others if type(other) is not type(value)])
    buffer = io.BytesIO()
    torch.save(whole, buffer)
    return buffer.getvalue()
