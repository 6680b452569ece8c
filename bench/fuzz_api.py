"""schemathesis over the whole API of a running daemon: python bench/fuzz_api.py URL KEY [CASES]

All phases, about CASES generated cases (default 10 000) besides the covering ones. Give it a daemon of its own:
it creates, cancels and erases jobs, mints tokens and changes budgets. Exit code 0: no 5xx, no answer that the
document does not describe, no invalid request accepted.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
OPERATIONS = 45
"""About as many calls as the document has; only to turn cases into cases a call."""


def main(url: str, key: str, cases: int = 10_000) -> int:
    """Run it; the exit code."""
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json",
        "--header", f"Authorization: Bearer {key}", "--max-examples", str(max(1, cases // OPERATIONS)),
        "--phases", "examples,coverage,fuzzing,stateful", "--continue-on-failure", *FIXED,
    ]  # fmt: skip
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 10_000))
