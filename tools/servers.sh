#!/usr/bin/env bash
# Installs what the tests start and this machine lacks, from Debian's packages; names given as arguments are
# installed as they are. Says what to do where it may not install.
set -euo pipefail

missing=("$@")
if [ "$#" -eq 0 ]; then
  command -v redis-server >/dev/null || missing+=(redis-server)
  command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing+=(nginx-light)
  command -v node >/dev/null || missing+=(nodejs)
  command -v npm >/dev/null || missing+=(npm)
  command -v luac5.1 >/dev/null || missing+=(lua5.1)
  command -v pg_ctl >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/pg_ctl' >/dev/null || missing+=(postgresql)
  command -v wrk >/dev/null || missing+=(wrk)
  command -v jq >/dev/null || missing+=(jq)
  # Prometheus itself and promtool, for the alert rules. Its package brings a service, which the policy below keeps stopped.
  { command -v prometheus && command -v promtool; } >/dev/null || missing+=(prometheus)
  # A browser for the dashboard's tests, which are skipped without one: Ubuntu has none that is a plain package.
  if grep -qs '^ID=debian$' /etc/os-release; then
    command -v chromium-headless-shell >/dev/null || command -v chromium >/dev/null || missing+=(chromium-headless-shell)
  fi
fi
[ "${#missing[@]}" -eq 0 ] && exit 0

sudo=""
if [ "$(id -u)" -ne 0 ]; then
  sudo=$(command -v sudo) || { echo "Install these packages first, as root: ${missing[*]}" >&2; exit 1; }
fi
command -v apt-get >/dev/null || { echo "Install these first (no apt-get here): ${missing[*]}" >&2; exit 1; }
echo "Installing ${missing[*]}"
log=$(mktemp)
# Keep Debian from starting system services: the tests start their own servers on private ports.
policy=/usr/sbin/policy-rc.d
made=""
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null && $sudo chmod +x "$policy" && made=yes
fi
trap '[ -z "$made" ] || $sudo rm -f "$policy"; rm -f "$log"' EXIT
{ $sudo apt-get update && $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 \
  || { tail -n 20 "$log" >&2; exit 1; }
