#!/usr/bin/env python3
"""A protoc plugin that writes the Python stubs: messages, gRPC classes and their type stubs, all inside `perf_service.v1`.

It drives the pinned `grpc_tools` and `mypy-protobuf` (installed by `scripts/proto.py`), then moves the files that do not lie in
`perf_service/v1` by themselves (KEDA's interface, the validation rules) into `perf_service/v1/_vendor` and rewrites their imports, so that
the wheel installs no top-level `buf` or `externalscaler`. `google.api` comes from the package googleapis-common-protos instead.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

from google.protobuf.compiler import plugin_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet

VENDOR = "perf_service.v1._vendor"
MOVED = {"buf/validate": "buf.validate", "externalscaler": "externalscaler"}
PACKAGE_DOC = '"""Generated stubs of the contract in `protos/`. Never edited by hand."""\n'
SKIPPED = ("google/",)


def generate(request: plugin_pb2.CodeGeneratorRequest) -> plugin_pb2.CodeGeneratorResponse:
    """All files of the request that are not skipped, as Python."""
    files = [name for name in request.file_to_generate if not name.startswith(SKIPPED)]
    response = plugin_pb2.CodeGeneratorResponse(supported_features=plugin_pb2.CodeGeneratorResponse.FEATURE_PROTO3_OPTIONAL)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        descriptors = out / "all.binpb"
        descriptors.write_bytes(FileDescriptorSet(file=request.proto_file).SerializeToString())
        outputs = [f"--{kind}_out={out}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")]
        command = [sys.executable, "-W", "ignore", "-m", "grpc_tools.protoc", f"--descriptor_set_in={descriptors}", *outputs, *files]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr or done.stdout)
        for path in sorted(out.rglob("*.py*")):
            text = path.read_text()
            if path.name.endswith(("_grpc.py", "_grpc.pyi")) and not _has_service(request, path.relative_to(out)):
                continue
            response.file.add(name=str(_place(path.relative_to(out))), content=_rewrite(text))
    for package in ("perf_service/v1/_vendor", "perf_service/v1/_vendor/buf", "perf_service/v1/_vendor/buf/validate"):
        response.file.add(name=f"{package}/__init__.py", content="")
    response.file.add(name="perf_service/v1/_vendor/externalscaler/__init__.py", content="")
    response.file.add(
        name="perf_service/v1/__init__.py", content='"""Generated stubs of the contract in `protos/`. Never edited by hand."""\n'
    )
    return response


def _has_service(request: plugin_pb2.CodeGeneratorRequest, path: Path) -> bool:
    source = re.sub(r"_pb2_grpc\.pyi?$", ".proto", path.as_posix())
    return any(file.service for file in request.proto_file if file.name == source)


def _place(path: Path) -> Path:
    """Where a generated file belongs."""
    moved = any(path.as_posix().startswith(folder + "/") for folder in MOVED)
    return Path(VENDOR.replace(".", "/")) / path if moved else path


def _rewrite(text: str) -> str:
    """Imports of moved packages point to their new place. Descriptors inside the code keep the published file names."""
    for module in MOVED.values():
        escaped = re.escape(module)
        text = re.sub(rf"^from {escaped} import ", f"from {VENDOR}.{module} import ", text, flags=re.MULTILINE)
    return text


if __name__ == "__main__":
    answer = generate(plugin_pb2.CodeGeneratorRequest.FromString(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(answer.SerializeToString())
