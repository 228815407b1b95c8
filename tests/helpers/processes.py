"""What a script that has ended said."""


def done(process):
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr
    return process.stdout


def error_of(process):
    """The one line that a user is told."""
    assert "Traceback" not in process.stderr, process.stderr
    lines = process.stderr.splitlines()
    assert process.returncode == 1 and [line for line in lines if line.startswith("error: ")] == lines[-1:]
    return lines[-1]
