"""The example of `node.testing` works as it stands there, in a project that only has leasemesh installed."""

import re
import subprocess
import sys

import leasemesh.node.testing

EXAMPLES = re.findall(r"```python\n(.*?)```", leasemesh.node.testing.__doc__, re.DOTALL)


def test_the_documented_tests_pass_as_they_stand(tmp_path):
    (tmp_path / "test_example.py").write_text("\n\n".join(EXAMPLES))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-W",
            "error",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:asyncio",
            "test_example.py",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
