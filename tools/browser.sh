#!/bin/sh
# The report is tested in a headless Chromium: install Debian's where apt is at hand and we may; else that test skips.
set -u
for name in chromium-headless-shell chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    echo "installing chromium-headless-shell for the tests of the report"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        chromium-headless-shell; } >/dev/null 2>&1 || echo "could not; the tests in a browser will be skipped"
fi
exit 0
