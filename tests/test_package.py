"""pip install . by itself, as any environment with a compiler does it."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import zipfile

import hosts


def test_a_wheel_is_built_in_isolation_and_holds_everything(tmp_path):
    build = f"--config-settings=build-dir={tmp_path}/build"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            build,
            "--wheel-dir",
            tmp_path,
            hosts.PROJECT,
        ],
        check=True,
    )
    [wheel] = tmp_path.glob("optplug-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        contents = {name: archive.read(name) for name in names}
    suffix = "dylib" if sys.platform == "darwin" else "so"
    assert {
        f"optplug/lib/liboptplug.{suffix}",
        "optplug/include/optplug.h",
        "optplug/bin/optplug-probe",
        "optplug/matlab/+optplug/Optimizer.m",
        "optplug/matlab/liboptplug_proto.m",
        "optplug/matlab/optplug_mex.c",
    } <= names
    assert sum(name.startswith("optplug/matlab/liboptplug_thunk_") for name in names) == 1
    assert sum(pathlib.Path(name).name.startswith("_optplug.") for name in names) == 1
    assert all(name.startswith("optplug/") for name in names)
    for name, content in contents.items():
        assert str(hosts.PROJECT).encode() not in content, name
        assert str(tmp_path).encode() not in content, name
