"""schemathesis over the whole API of a running daemon: python bench/fuzz_api.py URL KEY [CASES]

First a tenth of CASES (default 10 000) against things that exist, which generated ids never meet; then about CASES
generated ones, all phases. Give it a daemon of its own: it creates, cancels and erases jobs, mints tokens, changes
budgets. Its wrong keys must stay a 401: LISTINGD_LIMITS__FAILED_LOGINS_PER_MINUTE=1000000.
Exit code 0: no 5xx, no answer that the document does not describe, no invalid request accepted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

# A schema cannot say that a cursor is one of ours or that bytes are a picture: "valid data is accepted" cannot
# hold. A stream does not end.
FIXED = [
    "--exclude-checks",
    "positive_data_acceptance",
    "--exclude-path-regex",
    "events$",
    "--request-timeout",
    "30",
]
# schemathesis guesses that what was created can be had at once: a zip of files that are not made yet cannot.
EMPTY_ARCHIVE = """[[operations]]
include-path = "/v1/jobs/{id}/archive"
checks.ensure_resource_availability.enabled = false

"""
PHOTO = Path(__file__).parent.parent / "examples" / "sample_photo.jpg"


def call(url: str, key: str, method: str, path: str, body: Any = None, **headers: str) -> Any:
    """The JSON answer; bytes are sent as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
    kind = "image/jpeg" if isinstance(body, bytes) else "application/json"
    sent = {"Authorization": f"Bearer {key}", "Content-Type": kind} | headers
    request = urllib.request.Request(url + path, data=data, method=method, headers=sent)
    with urllib.request.urlopen(request, timeout=90) as answer:
        return json.load(answer)


def make_things(url: str, key: str) -> dict[str, str]:
    """One of each: what stands for {id} in the paths that begin so."""
    upload = call(url, key, "POST", "/v1/uploads", PHOTO.read_bytes())
    job = {
        "kind": "image", "project_id": str(uuid4()),
        "input": {
            "photo": {"upload_id": upload["upload_id"]}, "slot": "main", "product": {"title": "Oak chair"}
        },
    }  # fmt: skip
    made = call(url, key, "POST", "/v1/jobs", job, Prefer="wait=60")
    hook = call(url, key, "POST", "/v1/webhooks", {"url": "https://hooks.example/x"})
    delivery = call(url, key, "POST", f"/v1/webhooks/{hook['id']}/test")
    return {
        "/v1/jobs": made["id"], "/v1/assets": made["assets"][0]["id"], "/v1/projects": made["project_id"],
        "/v1/webhooks": hook["id"], "/v1/webhooks/deliveries": delivery["delivery_id"],
    }  # fmt: skip


def write_config(paths: list[str], things: dict[str, str], folder: Path) -> Path:
    """A schemathesis configuration that asks for these things."""
    parts = []
    for path in paths:
        known = [prefix for prefix in things if path.startswith(prefix + "/{id}")]
        if known:
            parts.append(
                f'[[operations]]\ninclude-path = "{path}"\nparameters = {{ "path.id" = "{things[known[-1]]}" }}\n'
            )
    config = folder / "schemathesis.toml"
    config.write_text(EMPTY_ARCHIVE + "\n".join(parts))
    return config


def main(url: str, key: str, cases: int = 10_000) -> int:
    """Run it; the exit code."""
    program = str(Path(sys.executable).with_name("schemathesis"))
    paths = call(url, key, "GET", "/openapi.json")["paths"]
    operations = sum(len(calls) for calls in paths.values())
    common = [
        "run",
        f"{url}/openapi.json",
        "--header",
        f"Authorization: Bearer {key}",
        *FIXED,
        "--continue-on-failure",
    ]

    def fuzz(config: Path, cases: int, *more: str) -> int:
        size = ["--max-examples", str(max(1, cases // operations))]
        return subprocess.run(
            [program, "--config-file", str(config), *common, *size, *more], check=False
        ).returncode

    with tempfile.TemporaryDirectory() as folder:
        # The things first, while nothing is paused yet and no budget spent.
        config = write_config(list(paths), make_things(url, key), Path(folder))
        met = fuzz(
            config, cases // 10, "--phases", "coverage,fuzzing",
            "--exclude-method", "DELETE", "--include-path-regex", r"/\{id\}",
        )  # fmt: skip
        config = write_config([], {}, Path(folder))
        return fuzz(config, cases, "--phases", "examples,coverage,fuzzing,stateful") or met


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 10_000))
