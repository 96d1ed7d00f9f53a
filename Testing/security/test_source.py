"""What no file of the library and the module may do, held by reading them all."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "SegMoTELib").rglob("*.py"), *(ROOT / "SegMoTE").rglob("*.py")])
FORBIDDEN_CALLS = {  # last names of a call -> why
    "eval": "runs text", "exec": "runs text", "__import__": "runs text", "compile": "runs text",
    "system": "a shell", "popen": "a shell", "Popen": "a program", "getoutput": "a shell",
    "mktemp": "a name that another may take first", "unpack_archive": "may write anywhere",
    "extractall": "may write anywhere", "extract_zip": "may write anywhere", "unsafe_load": "runs code",
    "full_load": "may run code", "read_pickle": "runs code", "urlopen": "network", "urlretrieve": "network"}
METHODS_OF_OTHERS = {"eval", "compile", "system"}  # model.eval(), re.compile(), platform.system() are harmless
FORBIDDEN_MODULES = {"subprocess", "marshal", "shelve", "dill", "joblib", "cloudpickle", "telnetlib", "pty", "commands",
                     "xmlrpc", "xml"}
NETWORK = {"socket", "ssl", "http", "urllib", "urllib3", "requests", "pooch", "ftplib", "smtplib", "httpx", "aiohttp",
           "websockets", "huggingface_hub", "asyncio", "socketserver", "sentry_sdk", "boto3"}
MAY_REACH_OUT = {"SegMoTELib/zoo/download.py": NETWORK}
NO_NETWORK_BY_ITSELF = {"urllib.parse"}


def faults(source: str, name: str) -> list[str]:
    """What is forbidden in a file."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if ast.unparse(node) == "from subprocess import CalledProcessError":  # pip's failure, as Slicer reports it
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            for module in modules:
                top = module.split(".")[0]
                if top in FORBIDDEN_MODULES or (top in NETWORK and module not in NO_NETWORK_BY_ITSELF
                                                and top not in MAY_REACH_OUT.get(name, ())):
                    found.append(f"imports {module}")
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                found.append("imports from pickle")
        elif isinstance(node, ast.Call):
            found += call_faults(node, name)
    return found


def call_faults(node: ast.Call, name: str) -> list[str]:
    words = ast.unparse(node.func)
    last = words.rpartition(".")[2]
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    found = []
    bare = words == last or words in ("os.system", "builtins.eval", "builtins.exec", "builtins.compile")
    if last in FORBIDDEN_CALLS and (bare or last not in METHODS_OF_OTHERS):
        found.append(f"{words}: {FORBIDDEN_CALLS[last]}")
    if "shell" in given or given.get("allow_pickle", "False") != "False":
        found.append(f"{words}: shell or allow_pickle")
    if words.startswith("pickle.") and last in ("load", "loads", "Unpickler"):
        found.append(f"{words}: runs code")
    if words == "torch.load" and (given.get("weights_only") != "True" or name != "SegMoTELib/network/checkpoints.py"):
        found.append("torch.load: only network/checkpoints.py reads pickles, as weights")
    if words in ("yaml.load", "torch.hub.load", "torch.hub.load_state_dict_from_url"):
        found.append(words)
    if last == "Environment" and given.get("autoescape") != "True":
        found.append("a template without autoescape")
    if last == "chmod" and ast.unparse(node.args[-1]) not in ("384", "448"):  # 0o600, 0o700
        found.append("chmod opens a file to others")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_runs_nothing_it_reads_and_opens_no_network(path):
    assert faults(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize("line", [
    "eval(x)", "exec(x)", "os.system('ls ' + x)", "import subprocess", "subprocess.run(x, shell=True)",
    "from subprocess import run", "pickle.load(f)", "pickle.loads(b)", "from pickle import loads", "torch.load(p)",
    "torch.load(p, weights_only=True)", "yaml.load(t)", "yaml.unsafe_load(t)", "np.load(p, allow_pickle=True)",
    "tempfile.mktemp()", "zipfile.ZipFile(p).extractall()", "shutil.unpack_archive(p)", "import requests",
    "from urllib.request import urlopen", "import urllib.request", "import socket", "jinja2.Environment()",
    "path.chmod(0o777)", "import joblib", "torch.hub.load('a', 'b')", "import sentry_sdk", "os.popen(x)"])
def test_the_reader_sees_each_of_them(line):
    assert faults(line, "SegMoTELib/some/file.py")


@pytest.mark.parametrize("line", ["model.eval()", "re.compile(x)", "yaml.safe_load(t)", "np.load(p)",
                                  "from urllib.parse import urlsplit", "jinja2.Environment(autoescape=True)",
                                  "path.chmod(0o600)", "except_ = pickle.UnpicklingError", "platform.system()"])
def test_the_reader_lets_the_harmless_pass(line):
    assert faults(line, "SegMoTELib/some/file.py") == []
