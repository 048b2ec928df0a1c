"""Adam, without the seconds that torch takes to import its compiler."""

import inspect

import torch


class Adam(torch.optim.Adam):
    """``torch.optim.Adam``, bit for bit, that does not load ``torch._dynamo``; ``differentiable=True`` is not for it.

    torch wraps these methods so that ``torch.compile`` does not look into them, and the wrappers import the compiler,
    800 modules, when they are first called. Steps here are recorded, if at all, and never compiled. Optimisers of
    torch's own classes stay as they are, for programs that compile. In a torch without wrappers nothing changes.
    """

    add_param_group = inspect.unwrap(torch.optim.Adam.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Adam.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Adam.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Adam.zero_grad)
    # Its wrapper also turns gradients off.
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
