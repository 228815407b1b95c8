"""What must be so before Gradio is imported, which happens here first.

Nothing is sent to its makers, its files lie in a folder of this process' own, and a proxy of a kind that its HTTP
client does not know (SOCKS, as many set for all programs) does not end the import: the page asks nobody but peers.
"""

import os
import tempfile

FOLDER = tempfile.TemporaryDirectory(prefix="minigpt-page-", ignore_cleanup_errors=True)
os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_DISABLE_TELEMETRY="1", GRADIO_TEMP_DIR=FOLDER.name)
PROXIES = ("all_proxy", "http_proxy", "https_proxy")
unknown = {
    name: value
    for name, value in os.environ.items()
    if name.lower() in PROXIES and not value.startswith(("http://", "https://"))
}
for name in unknown:
    del os.environ[name]
try:
    import gradio  # noqa: F401
finally:
    os.environ.update(unknown)
