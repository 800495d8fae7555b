"""The wheel, installed where users have it: beside other people's `kernels` and `verifiers`."""

import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

OLDEST_PROTOBUF = "protobuf==5.29.5"
OLDEST_GRPC = "grpcio==1.62.3"

SHOW_THAT_ALL_IMPORT = """
import importlib.util, sys
import kernels, verifiers
import rewardsvc.policy_client, rewardsvc.verifiers
from rewardsvc.v1 import admin_pb2_grpc, reward_pb2_grpc, sandbox_pb2_grpc
from rewardsvc.verifiers.types import Verdict
import google.protobuf

assert google.protobuf.__version__.startswith("5.29"), google.protobuf.__version__
assert Verdict.accepted().reward == 1.0
site = rewardsvc.__path__[0]
for name in ("kernels", "verifiers", "policy_client"):
    spec = importlib.util.find_spec(f"rewardsvc.{name}")
    assert spec.origin == f"{site}/{name}/__init__.py", spec
for theirs in (kernels, verifiers):
    assert "rewardsvc" not in theirs.__file__, theirs.__file__
assert "torch" not in sys.modules
print("all three import")
"""


def run(*command: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    (found,) = folder.glob("*.whl")
    return found


@pytest.mark.packaging
@pytest.mark.timeout(600)
def test_the_wheel_installs_nothing_but_rewardsvc(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"rewardsvc"}
    for wanted in (
        "rewardsvc/py.typed",
        "rewardsvc/v1/reward_pb2.pyi",
        "rewardsvc/verifiers/types.py",
        "rewardsvc/kernels/__init__.py",
        "rewardsvc/policy_client/__init__.py",
        "rewardsvc/servicers/reward.py",
    ):
        assert wanted in names
    assert not [name for name in names if name.startswith("rewardsvc/tests")]


@pytest.mark.packaging
@pytest.mark.timeout(600)
def test_it_imports_beside_packages_of_the_same_names(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, wheel, OLDEST_PROTOBUF, OLDEST_GRPC, "kernels", "verifiers")
    said = run(python, "-I", "-c", SHOW_THAT_ALL_IMPORT)
    assert "all three import" in said
