"""Adam, without the seconds that torch takes to import its compiler."""

import inspect

import torch


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, bit for bit, without loading ``torch._dynamo``; it has no ``differentiable=True``.

    torch wraps these methods so that ``torch.compile`` does not look into them. The first call of a wrapper imports the
    compiler, 800 modules. Steps here may be recorded, but are never compiled. Torch's own classes keep their wrappers,
    for programs that compile. In a torch without wrappers this class changes nothing.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    # Its wrapper also turns gradients off.
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
