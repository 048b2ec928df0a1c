"""Configuration of the documentation: ``sphinx-build -W docs OUT``, or ``bash .ci/docs`` for all checks.

Two environment variables make it quicker: ``PYRO_VMM_DOCS_NOTEBOOKS=off`` shows the tutorials without running them.
"""

import ast
import importlib.util
import inspect
import os
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(ROOT), str(HERE)]

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("PYTHONHASHSEED", "0")

import pyro_vmm  # noqa: E402

project = "pyro_vmm"
author = "The pyro_vmm developers"
release = pyro_vmm.__version__
# Without the commit that an untagged build has in its version.
version = release.partition("+")[0]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]

exclude_patterns = ["_build", "_generated", "Thumbs.db", ".DS_Store", "**.ipynb_checkpoints"]
templates_path = ["_templates"]

# Markdown
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath", "attrs_inline", "substitution"]
myst_substitutions = {"version": version}
myst_heading_anchors = 3

# Notebooks
nb_execution_mode = os.environ.get("PYRO_VMM_DOCS_NOTEBOOKS", "cache")
nb_execution_timeout = 1200
# What it imports is an extra, which pins the versions of other packages.
nb_execution_excludepatterns = [] if importlib.util.find_spec("scvi") else ["*/scvi.ipynb"]
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
nb_merge_streams = True

# The reference
autosummary_generate = True
autosummary_imported_members = False
autodoc_default_options = {"members": True, "show-inheritance": True, "member-order": "bysource"}
autodoc_typehints = "signature"
maximum_signature_line_length = 100
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# The estimators group their parameters by subject.
SUBJECTS = ("the data", "the model", "the prior", "training", "the machine")
napoleon_custom_sections = [(f"Parameters of {subject}", "params_style") for subject in SUBJECTS]
# As fields of their own, attributes lose the underscore at their end, and several on a line become a name and a type.
napoleon_custom_sections.append(("Attributes", "params_style"))
add_module_names = False
toc_object_entries_show_parents = "hide"
python_use_unqualified_type_names = True
nitpicky = True
# Types of other packages: their pages may not be reachable where this is built. Ours have to be found, but for base
# classes and types that a user need not know.
nitpick_ignore_regex = [
    ("py:.*", r"(?!pyro_vmm\.).*"),
    ("py:class", r"pyro_vmm\.(estimators|inference\.config|rivals\.estimators)\..*"),
    ("py:class", r"pyro_vmm\.evaluation\.(selection|comparison)\.fits\..*"),
    ("py:class", r"pyro_vmm\.(runtime\.(recorder|rows|ranks|settings)|data\.(watch|blocks))\.[A-Z]\w*"),
    ("py:class", r"pyro_vmm\.(data\.(genes|cell_rows)|priors\.moves|report\.sections)\.[A-Z]\w*"),
    ("py:class", r"pyro_vmm\..*\._\w+"),
]

# Other projects' references are linked where a network is there: PYRO_VMM_DOCS_INTERSPHINX=on.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
    }
    if os.environ.get("PYRO_VMM_DOCS_INTERSPHINX") == "on"
    else {}
)

# Links to pages outside are for readers; CI checks those between pages.
linkcheck_ignore = [r"https?://.*"]

# Doctests: two epochs show that an example runs.
doctest_global_setup = """
import warnings
from dataclasses import replace
from pyro_vmm import Trainer
if not hasattr(Trainer, "_whole_init"):
    Trainer._whole_init = Trainer.__init__
    def _short_init(self, vae, config=None, *args, **kwargs):
        from pyro_vmm import TrainingConfig
        Trainer._whole_init(self, vae, replace(config or TrainingConfig(), epochs=2), *args, **kwargs)
    Trainer.__init__ = _short_init
"""
doctest_test_doctest_blocks = "default"

# The theme
html_theme = "sphinx_book_theme"
html_title = "pyro_vmm"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
}


def bring(source: Path, target: Path, *patterns: str) -> None:
    """Copy files from elsewhere in the repository to where Sphinx reads; what changes no file keeps its time."""
    target.mkdir(parents=True, exist_ok=True)
    wanted = {path.name: path for pattern in patterns for path in source.glob(pattern)}
    for old in target.iterdir():
        if old.is_file() and old.name not in wanted and old.name != ".gitignore":
            old.unlink()
    for name, path in wanted.items():
        copy = target / name
        if path.suffix == ".md":
            text = relinked(path.read_text(encoding="utf-8"), path)
            if not copy.exists() or copy.read_text(encoding="utf-8") != text:
                copy.write_text(text, encoding="utf-8")
        elif not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copyfile(path, copy)


def relinked(text: str, path: Path) -> str:
    """Links to files of the repository that are no pages, as the names of these files."""

    def replace(found: re.Match) -> str:
        label, link = found["label"], found["link"]
        if re.match(r"https?://|#|mailto:", link):
            return found[0]
        target = (path.parent / link.partition("#")[0]).resolve()
        if target.parent == path.parent and target.suffix in (".md", ".png", ".csv"):
            return found[0]
        if found["image"]:
            return f"![{label}]({Path(os.path.relpath(target, HERE / 'results' / 'measured')).as_posix()})"
        return f"`{target.relative_to(ROOT).as_posix()}`"

    return re.sub(r"(?P<image>!?)\[(?P<label>[^\]]*)\]\((?P<link>[^)\s]+)\)", replace, text)


def write_help() -> None:
    """What the command line says of itself."""
    from pyro_vmm.cli import build_parser

    os.environ["COLUMNS"] = "110"
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    parser = build_parser()
    (folder / "help.txt").write_text(parser.format_help(), encoding="utf-8")


def source_of(file: str) -> ast.Module:
    """A file of ``pyro_vmm.scvi``, parsed: it can't be imported here, as the site does without scvi-tools."""
    return ast.parse((ROOT / "pyro_vmm" / "scvi" / file).read_text(encoding="utf-8"))


def names_of_scvi() -> list[str]:
    """The public names of ``pyro_vmm.scvi``."""
    [stated] = [each for each in source_of("__init__.py").body if isinstance(each, ast.Assign)]
    return ast.literal_eval(stated.value)


def documented_source(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> list[str]:
    """The docstring of a node and, indented, those of the public methods of a class, as reStructuredText."""
    from sphinx.ext.napoleon import Config, GoogleDocstring

    lines = inspect.cleandoc(ast.get_docstring(node)).splitlines()
    tidy(None, "", "", None, None, lines)
    lines = str(
        GoogleDocstring("\n".join(lines), Config(napoleon_use_rtype=False, napoleon_use_ivar=True))
    ).splitlines()
    for each in node.body if isinstance(node, ast.ClassDef) else ():
        if isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and ast.get_docstring(each):
            decorators = [name.id for name in each.decorator_list if isinstance(name, ast.Name)]
            lines += directive("property" if "property" in decorators else "method", each)
    # The underscore at the end of a name would make it a link.
    return [re.sub(r"(?<=\w)_(?=[,:])", r"\\_", line) if line.startswith(":ivar") else line for line in lines]


def directive(kind: str, node: ast.ClassDef | ast.FunctionDef) -> list[str]:
    """The directive of a class, function or method, from its source."""
    signature = node.name
    if kind in ("function", "method") and isinstance(node, ast.FunctionDef):
        arguments = ast.unparse(node.args).removeprefix("self").removeprefix(", ")
        signature += f"({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    return ["", f".. py:{kind}:: {signature}", "", *(f"   {line}" for line in documented_source(node))]


def write_scvi() -> None:
    """The reference of ``pyro_vmm.scvi``, from the docstrings in its source."""
    lines = [".. py:module:: pyro_vmm.scvi", "", *documented_source(source_of("__init__.py"))]
    for name in names_of_scvi():
        if name not in ("STOCK", "with_vmm"):
            settings = ":class:`~pyro_vmm.scvi.settings.PriorSettings`"
            methods = ":class:`~pyro_vmm.scvi.clusters.Clusters`"
            text = f"``scvi.model.{name}``, also with the arguments of {settings} and the methods of {methods}."
            lines += ["", f".. py:class:: {name}(*args, **kwargs)", "", f"   {text}"]
    lines += ["", ".. py:data:: STOCK", "", "   The classes of scvi-tools that have an adapter, by name."]
    for file, names in SCVI_SHOWN.items():
        found = {
            each.name: each for each in source_of(f"{file}.py").body if isinstance(each, ast.ClassDef | ast.FunctionDef)
        }
        module = "pyro_vmm.scvi" if file == "models" else f"pyro_vmm.scvi.{file}"
        lines += ["", f".. py:{'currentmodule' if file == 'models' else 'module'}:: {module}", ""]
        for name in names:
            lines += directive("class" if isinstance(found[name], ast.ClassDef) else "function", found[name])
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    (folder / "scvi.rst").write_text("\n".join(lines) + "\n", encoding="utf-8")


def missing_from_reference(app, env) -> None:
    """Warn of public names that no page of the reference has."""
    from sphinx.util import logging

    documented = set(env.domains.python_domain.objects)
    modules = [importlib.import_module(name) for name in PUBLIC]
    for module in modules:
        for name in module.__all__:
            value = getattr(module, name)
            homes = {each.__name__ for each in modules if getattr(each, name, None) is value}
            homes.add(getattr(value, "__module__", module.__name__))
            constant = name.isupper() and any(full.endswith(f".{name}") for full in documented)
            if not (constant or name == "__version__" or documented & {f"{home}.{name}" for home in homes}):
                logging.getLogger(__name__).warning("%s.%s is not in the reference", module.__name__, name)
    for name in names_of_scvi():
        if f"pyro_vmm.scvi.{name}" not in documented:
            logging.getLogger(__name__).warning("pyro_vmm.scvi.%s is not in the reference", name)


def skip_others(app, what, name, obj, skip, options) -> bool | None:
    """Leave out methods that classes have from other packages, which document them."""
    module = getattr(getattr(obj, "fget", obj), "__module__", None)
    foreign = what != "module" and module is not None and not module.startswith("pyro_vmm")
    return True if foreign or re.fullmatch(r"set_\w+_request", name) else None


def tidy(app, what, name, obj, options, lines: list[str]) -> None:
    """Escape the stars of shapes such as (N, *event_shape), and put names that share a description on one line."""
    joined: list[str] = []
    for line in lines:
        literal = line.split("``")
        literal[::2] = [re.sub(r"(?<!\\)\*(?=\w+_shape\b)", r"\\*", text) for text in literal[::2]]
        line = "``".join(literal)
        # A letter with a full stop, such as "D.", would begin a list.
        line = re.sub(r"(:\s+[A-Z])\.$", r"\1\\.", line)
        if joined and re.fullmatch(r"\s+(\w+, )*\w+,", joined[-1]):
            joined[-1] += " " + line.strip()
        else:
            joined.append(line)
    lines[:] = joined


def in_short(app, what, name, obj, options, signature, returned) -> tuple[str, None] | None:
    """Of an estimator's forty settings show those that most runs use; its page lists all of them, by subject."""
    from pyro_vmm.estimators.base import Estimator
    from pyro_vmm.runtime.settings import settings_of

    if what != "class" or not issubclass(obj, Estimator):
        return None
    parameters, settings = inspect.signature(obj).parameters.values(), settings_of(obj)
    shown = [each.replace(annotation=inspect.Parameter.empty) for each in parameters if settings[each.name].common]
    others = inspect.Parameter("further_settings", inspect.Parameter.VAR_KEYWORD)
    return str(inspect.Signature([*shown, others])), None


#: The modules whose ``__all__`` is the public interface; that of ``pyro_vmm.scvi`` is read from its source.
PUBLIC = [
    "pyro_vmm",
    "pyro_vmm.analysis",
    "pyro_vmm.data",
    "pyro_vmm.distributions",
    "pyro_vmm.estimators",
    "pyro_vmm.evaluation.comparison",
    "pyro_vmm.evaluation.selection",
    "pyro_vmm.inference",
    "pyro_vmm.likelihoods",
    "pyro_vmm.models",
    "pyro_vmm.networks",
    "pyro_vmm.plots",
    "pyro_vmm.priors",
    "pyro_vmm.report",
    "pyro_vmm.rivals",
]
#: What the reference shows of each file of ``pyro_vmm.scvi``.
SCVI_SHOWN = {
    "models": ["with_vmm"],
    "settings": ["PriorSettings", "TrainingSettings"],
    "clusters": ["Clusters"],
    "cells": ["PseudoCells"],
    "contract": ["check_class", "check_model"],
}

bring(ROOT / "notebooks", HERE / "tutorials" / "notebooks", "*.ipynb")
bring(ROOT / "benchmarks" / "results", HERE / "results" / "measured", "*.md", "*.png", "*.csv")
write_help()
write_scvi()


def setup(app) -> None:
    app.connect("autodoc-skip-member", skip_others)
    app.connect("autodoc-process-signature", in_short)
    app.connect("autodoc-process-docstring", tidy, priority=100)  # before napoleon
    app.connect("env-check-consistency", missing_from_reference)
