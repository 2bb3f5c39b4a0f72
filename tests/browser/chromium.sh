#!/bin/sh
# Make sure that there is a Chromium for the browser tests: look for one, or install Debian's.

for name in chromium chromium-browser google-chrome google-chrome-stable; do
  if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done

if ! command -v apt-get >/dev/null 2>&1 || [ "$(id -u)" != 0 ]; then
  echo "qtutor: the browser tests need Chromium, and none was found. Installing it takes root and apt-get, and one of the" \
    "two is missing here: install Chromium the way your system does it (Debian and Ubuntu: sudo apt install chromium)," \
    "then call make browser again." >&2
  exit 1
fi

echo "Installing Chromium with apt-get"
log=$(mktemp)
# The test machine may be in the middle of another installation: wait for its lock.
if ! { apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 install -y --no-install-recommends \
  chromium; } >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  echo "qtutor: apt-get could not install Chromium; its last lines stand above, all of them in $log. Check the network and" \
    "the disk, or install Chromium by hand, then call make browser again." >&2
  exit 1
fi
rm -f "$log"
